//! Models on disk.

use crate::Random;
use serde_json::{Map, Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// A tensor to write.
#[derive(Debug, Clone)]
pub struct Tensor {
    pub name: String,
    pub shape: Vec<u64>,
    pub data: Vec<u8>,
}

impl Tensor {
    /// Random `F32` values.
    pub fn f32(name: &str, shape: &[u64], random: &mut Random) -> Self {
        let mut data = vec![0; usize::try_from(shape.iter().product::<u64>() * 4).unwrap()];
        random.fill(&mut data);
        Self {
            name: name.to_owned(),
            shape: shape.to_vec(),
            data,
        }
    }
}

/// The bytes of a safetensors file.
pub fn safetensors(tensors: &[Tensor]) -> Vec<u8> {
    let mut header = Map::new();
    let mut at = 0;
    for tensor in tensors {
        let end = at + tensor.data.len();
        let entry = json!({"dtype": "F32", "shape": tensor.shape, "data_offsets": [at, end]});
        header.insert(tensor.name.clone(), entry);
        at = end;
    }
    let text = Value::Object(header).to_string();
    with_header(
        text.as_bytes(),
        &tensors
            .iter()
            .map(|t| &t.data[..])
            .collect::<Vec<_>>()
            .concat(),
    )
}

/// A file with this header, padded as the format asks, and these data.
pub fn with_header(header: &[u8], data: &[u8]) -> Vec<u8> {
    let padded = header.len().next_multiple_of(8);
    let mut out = (padded as u64).to_le_bytes().to_vec();
    out.extend_from_slice(header);
    out.resize(8 + padded, b' ');
    out.extend_from_slice(data);
    out
}

/// Writes a model of about `bytes` bytes in `tensors` tensors; returns its path and its image.
pub fn write(dir: &Path, file: &str, bytes: u64, tensors: u64, seed: u64) -> (PathBuf, Vec<u8>) {
    let mut random = Random(seed);
    let rows = (bytes / tensors / 4).max(1);
    let tensors: Vec<Tensor> = (0..tensors)
        .map(|i| Tensor::f32(&format!("layer.{i}.weight"), &[rows], &mut random))
        .collect();
    let image = safetensors(&tensors);
    let path = dir.join(file);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, &image).unwrap();
    (path, image)
}

/// Writes a sharded model: its directory, index and shards.
pub fn write_sharded(
    dir: &Path,
    shards: u64,
    bytes_each: u64,
    seed: u64,
) -> Vec<(String, Vec<u8>)> {
    fs::create_dir_all(dir).unwrap();
    let mut random = Random(seed);
    let mut map = Map::new();
    let mut files = Vec::new();
    for i in 0..shards {
        let file = format!("model-{:05}-of-{shards:05}.safetensors", i + 1);
        let tensor = Tensor::f32(&format!("shard.{i}.weight"), &[bytes_each / 4], &mut random);
        map.insert(tensor.name.clone(), json!(file));
        let image = safetensors(&[tensor]);
        fs::write(dir.join(&file), &image).unwrap();
        files.push((file, image));
    }
    let index = json!({"metadata": {}, "weight_map": map}).to_string();
    fs::write(dir.join("model.safetensors.index.json"), &index).unwrap();
    files.push((
        "model.safetensors.index.json".to_owned(),
        index.into_bytes(),
    ));
    files
}
