use crate::support::{assert_close, bench, random};
use kernels::{Dtype, RopeTable, rms_norm_rope, rope};

const DTYPES: [Dtype; 2] = [Dtype::F32, Dtype::Bf16];
/// Heads and their width: groups within a head, groups across heads, one head, and a row without whole groups.
const HEADS: [(usize, usize); 5] = [(12, 128), (3, 12), (1, 16), (1, 6), (5, 14)];

#[test]
fn rotation_on_the_device_equals_the_host() {
    let bench = bench();
    bench.each_order(|| {
        for (heads, head_dim) in HEADS {
            let table = RopeTable::wan(head_dim, [2, 2, 3]).unwrap();
            for dtype in DTYPES {
                let x = random(&[12, heads * head_dim], 1).to_dtype(dtype);
                let y = rope(&bench.on_device(&x), heads, &table).unwrap();
                assert_close(&y, &rope(&x, heads, &table).unwrap(), dtype);
            }
        }
    });
}

#[test]
fn normed_rotation_on_the_device_equals_the_host_over_several_clips() {
    let bench = bench();
    bench.each_order(|| {
        for (heads, head_dim) in HEADS {
            let table = RopeTable::wan(head_dim, [1, 2, 2]).unwrap();
            let weight = random(&[heads * head_dim], 2);
            for (dtype, out) in DTYPES.into_iter().flat_map(|x| DTYPES.map(|out| (x, out))) {
                // Two clips, each with the table's four positions.
                let x = random(&[8, heads * head_dim], 1).to_dtype(dtype);
                let host = rms_norm_rope(&x, &weight, 1e-6, heads, &table, out).unwrap();
                let (x, weight) = (bench.on_device(&x), bench.on_device(&weight));
                let y = rms_norm_rope(&x, &weight, 1e-6, heads, &table, out).unwrap();
                assert_close(&y, &host, out);
            }
        }
    });
}

#[test]
fn a_table_is_copied_to_a_device_once() {
    let bench = bench();
    let table = RopeTable::wan(16, [1, 8, 8]).unwrap();
    let x = bench.on_device(&random(&[64, 32], 1));
    let live = || bench.device.live_bytes();
    let before = live();
    drop(rope(&x, 2, &table).unwrap());
    let with_table = live();
    assert!(with_table > before);
    drop(rope(&x, 2, &table.clone()).unwrap());
    assert_eq!(live(), with_table);
    drop(table);
    assert_eq!(live(), before);
}
