use crate::support::{bench, random};
use kernels::{Dtype, Tensor, channels_first, channels_last, concat_channels, patchify, slice_channels, unpatchify};

const DTYPES: [Dtype; 2] = [Dtype::F32, Dtype::Bf16];

#[track_caller]
fn assert_same(device: &Tensor, host: &Tensor) {
    assert_eq!((device.shape(), device.dtype()), (host.shape(), host.dtype()));
    assert!(device.to_vec_f32() == host.to_vec_f32(), "{:?} differ", host.shape());
}

#[test]
fn channel_orders_on_the_device_equal_the_host_s() {
    let bench = bench();
    bench.each_order(|| {
        for (dtype, c) in DTYPES.into_iter().flat_map(|dtype| [1, 2, 3, 16, 33, 70].map(|c| (dtype, c))) {
            let x = random(&[c, 2, 5, 37], 1).to_dtype(dtype);
            let there = channels_last(&bench.on_device(&x)).unwrap();
            assert_same(&there, &channels_last(&x).unwrap());
            assert_same(&channels_first(&there).unwrap(), &x);
        }
    });
}

#[test]
fn patches_on_the_device_equal_the_host_s() {
    let bench = bench();
    for (dtype, patch) in DTYPES.into_iter().flat_map(|dtype| [[1, 2, 2], [2, 1, 3]].map(|patch| (dtype, patch))) {
        let x = random(&[4, 6, 12, 5], 1).to_dtype(dtype);
        assert_same(&patchify(&bench.on_device(&x), patch).unwrap(), &patchify(&x, patch).unwrap());
        let grid = [4 / patch[0], 6 / patch[1], 12 / patch[2]];
        let tokens = x.reshape(&[grid.iter().product(), 5 * patch.iter().product::<usize>()]).unwrap();
        let clip = unpatchify(&bench.on_device(&tokens), grid, patch).unwrap();
        assert_same(&clip, &unpatchify(&tokens, grid, patch).unwrap());
    }
}

#[test]
fn channels_are_cut_and_joined_on_the_device_in_units_of_any_size() {
    let bench = bench();
    bench.each_order(|| {
        // Bytes of a row that 16 divides, that 4 divides, and that only 2 divides.
        for (dtype, widths) in DTYPES.into_iter().flat_map(|dtype| [[16, 8], [6, 2], [3, 4]].map(|w| (dtype, w))) {
            let parts = widths.map(|c| random(&[700, c], c as u64).to_dtype(dtype));
            let [a, b] = [&parts[0], &parts[1]].map(|part| bench.on_device(part));
            let joined = concat_channels(&[&a, &b, &a]).unwrap();
            let host = concat_channels(&[&parts[0], &parts[1], &parts[0]]).unwrap();
            assert_same(&joined, &host);
            let cut = slice_channels(&joined, widths[0], widths[1]).unwrap();
            assert_same(&cut, &parts[1]);
            assert_same(&slice_channels(&joined, 1, 3).unwrap(), &slice_channels(&host, 1, 3).unwrap());
            assert!(slice_channels(&joined, 1, 0).unwrap().is_empty());
        }
    });
}

#[test]
fn more_parts_than_a_kernel_takes_are_joined_in_order() {
    let bench = bench();
    let parts: Vec<Tensor> = (0..35).map(|i| random(&[9, 1 + i % 3], i as u64)).collect();
    let there: Vec<Tensor> = parts.iter().map(|part| bench.on_device(part)).collect();
    let joined = concat_channels(&there.iter().collect::<Vec<_>>()).unwrap();
    assert_same(&joined, &concat_channels(&parts.iter().collect::<Vec<_>>()).unwrap());
}

#[test]
fn frames_are_cut_and_joined_on_the_device() {
    let bench = bench();
    for dtype in DTYPES {
        let x = random(&[5, 3, 7], 1).to_dtype(dtype);
        let there = bench.on_device(&x);
        let (head, tail) = (there.slice_outer(0..2).unwrap(), there.slice_outer(2..5).unwrap());
        assert_same(&tail, &x.slice_outer(2..5).unwrap());
        assert_same(&Tensor::concat_outer(&[&head, &tail]).unwrap(), &x);
        assert!(there.slice_outer(3..3).unwrap().is_empty());
        assert!(there.slice_outer(4..6).is_err());
        assert!(Tensor::concat_outer(&[&head, &x]).is_err());
    }
    let x = bench.on_device(&random(&[2, 2], 1));
    assert!(Tensor::concat_outer(&[&x, &x.to_dtype(Dtype::Bf16)]).is_err());
    assert!(concat_channels(&[&x, &x.to_dtype(Dtype::Bf16)]).is_err());
}
