//! Int8 and 8-bit float weights with scales beside them.

use super::*;

/// One int8 layer as the published int8 files of Wan store it, in the original dialect: whole rows, a scale each.
fn int8_file() -> Vec<u8> {
    let header = r#"{
        "blocks.0.self_attn.q.weight":{"dtype":"I8","shape":[2,3],"data_offsets":[0,6]},
        "blocks.0.self_attn.q.weight_scale":{"dtype":"F32","shape":[2,1],"data_offsets":[6,14]},
        "blocks.0.self_attn.q.bias":{"dtype":"F32","shape":[2],"data_offsets":[14,22]},
        "blocks.0.self_attn.k.weight":{"dtype":"BF16","shape":[1,1],"data_offsets":[22,24]}}"#;
    let values: [i8; 6] = [127, -127, 0, 1, 2, -3];
    let floats = [0.5f32, 2.0, 1.0, 1.0];
    let data: Vec<u8> =
        values.iter().map(|v| v.cast_unsigned()).chain(floats.iter().flat_map(|v| v.to_le_bytes())).collect();
    file(header, &[data, bf16::from_f32(1.5).to_le_bytes().to_vec()].concat())
}

#[test]
fn int8_rows_come_whole_or_scaled() {
    let weights = load(int8_file()).unwrap();
    let block = weights.scope("blocks.0");
    let whole = block.int8("attn1.to_q", [2, 3]).unwrap().unwrap();
    assert_eq!(whole, Int8Matrix { values: vec![127, -127, 0, 1, 2, -3], scales: vec![0.5, 2.0] });
    let scaled = block.tensor("attn1.to_q.weight", &[2, 3], Dtype::F32).unwrap();
    assert_eq!(scaled.to_vec_f32(), [63.5, -63.5, 0.0, 2.0, 4.0, -6.0]);
    assert_eq!(block.int8("attn1.to_k", [1, 1]).unwrap(), None, "bf16 is no int8");
    assert!(matches!(block.int8("attn1.to_q", [3, 2]), Err(ModelError::WrongShape { .. })));
    assert_eq!(weights.unused(), ["blocks.0.attn1.to_q.bias"], "scales are taken with what they scale");
}

#[test]
fn one_scale_may_serve_a_whole_tensor_of_8_bit_floats() {
    let header = r#"{"scaled_fp8":{"dtype":"F8_E4M3","shape":[0],"data_offsets":[0,0]},
        "l.weight":{"dtype":"F8_E4M3","shape":[1,2],"data_offsets":[0,2]},
        "l.scale_weight":{"dtype":"F32","shape":[1],"data_offsets":[2,6]},
        "plain.weight":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[6,7]}}"#;
    let weights = load(file(header, &[&[0x38, 0xc0][..], &0.25f32.to_le_bytes(), &[0x38]].concat())).unwrap();
    assert_eq!(weights.tensor("l.weight", &[1, 2], Dtype::F32).unwrap().to_vec_f32(), [0.25, -0.5]);
    assert_eq!(weights.tensor("plain.weight", &[1], Dtype::F32).unwrap().to_vec_f32(), [1.0]);
    assert!(weights.unused().is_empty(), "{:?}", weights.unused());
}

#[test]
fn scales_that_are_missing_or_do_not_fit_are_named() {
    let header = |scale: &str| format!(r#"{{"l.weight":{{"dtype":"I8","shape":[2,2],"data_offsets":[0,4]}}{scale}}}"#);
    let bare = load(file(&header(""), &[0; 4])).unwrap();
    let refused = bare.tensor("l.weight", &[2, 2], Dtype::F32).unwrap_err();
    assert!(matches!(&refused, ModelError::UnsupportedDtype { tensor, .. } if tensor == "l.weight"), "{refused}");
    for shape in ["3", "1,2", "2,2"] {
        let count: usize = shape.split(',').map(|n| n.parse::<usize>().unwrap()).product();
        let scale =
            format!(r#","l.weight_scale":{{"dtype":"F32","shape":[{shape}],"data_offsets":[4,{}]}}"#, 4 + 4 * count);
        let weights = load(file(&header(&scale), &vec![0; 4 + 4 * count])).unwrap();
        let refused = weights.int8("l.weight", [2, 2]).unwrap_err();
        assert!(matches!(&refused, ModelError::ScaleShape { rows: 2, .. }), "{shape}: {refused}");
    }
    let nan = r#","l.weight_scale":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}"#;
    let weights = load(file(&header(nan), &[&[0; 4][..], &f32::NAN.to_le_bytes()].concat())).unwrap();
    assert!(matches!(weights.int8("l.weight", [2, 2]), Err(ModelError::NotFinite { .. })));
}
