//! Models on disk.

use crate::Random;
use serde_json::{Map, Value, json};
use std::fs;
use std::io::{Seek, SeekFrom, Write};
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

/// Writes a model of zeros, which takes no room on the disk, of about `bytes` bytes.
pub fn write_zeros(dir: &Path, file: &str, bytes: u64, tensors: u64) -> PathBuf {
    let rows = (bytes / tensors / 4).max(1);
    let entry = |i: u64| {
        let offsets = [i * rows * 4, (i + 1) * rows * 4];
        let entry = json!({"dtype": "F32", "shape": [rows], "data_offsets": offsets});
        (format!("layer.{i}.weight"), entry)
    };
    let header: Map<_, _> = (0..tensors).map(entry).collect();
    let header = with_header(Value::Object(header).to_string().as_bytes(), &[]);
    let path = dir.join(file);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, &header).unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.set_len(header.len() as u64 + tensors * rows * 4)
        .unwrap();
    path
}

/// Writes a model of random values, of about `bytes` bytes, without holding it in memory.
pub fn write_random(dir: &Path, file: &str, bytes: u64, tensors: u64) -> PathBuf {
    let path = write_zeros(dir, file, bytes, tensors);
    let rows = (bytes / tensors / 4).max(1);
    let mut left = tensors * rows * 4;
    let mut file = fs::File::options().write(true).open(&path).unwrap();
    let len = file.metadata().unwrap().len();
    file.seek(SeekFrom::Start(len - left)).unwrap();
    let (mut random, mut chunk) = (Random(left), vec![0; 4 << 20]);
    while left > 0 {
        random.fill(&mut chunk);
        let now = left.min(chunk.len() as u64);
        let bytes = &chunk[..usize::try_from(now).unwrap()];
        file.write_all(bytes).unwrap();
        left -= now;
    }
    file.sync_all().unwrap();
    path
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
