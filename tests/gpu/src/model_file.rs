//! Models on disk, made here, and how fast they are read.

use crate::Anything;
use crate::scale::MIB;
use crate::stats::timed_us;
use rustix::fs::{Advice, fadvise, statvfs};
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use serde_json::{Map, json};
use std::fs::File;
use std::io::{BufWriter, IoSliceMut, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;

const CHUNK_BYTES: usize = 8 << 20;
/// How often a file is put out of the page cache before it is given up.
const COLD_TRIES: u32 = 8;

/// A safetensors file.
#[derive(Debug, Clone)]
pub(crate) struct ModelFile {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
    pub(crate) tensors: u64,
    /// How the daemon is to put the tensors together on a device.
    pub(crate) granularity: &'static str,
}

impl ModelFile {
    /// Writes a file of about `bytes` bytes, if there is room for it; of so many tensors, whose
    /// sizes and so whose places in the file are odd.
    pub(crate) fn write(dir: &Path, name: &str, bytes: u64, tensors: u64) -> Anything<Self> {
        let room = statvfs(dir)?;
        let room_bytes = room.f_bavail * room.f_frsize;
        if room_bytes < bytes + 1024 * MIB {
            return Err(format!("{} MiB are free in {}", room_bytes / MIB, dir.display()).into());
        }
        let path = dir.join(format!("{name}.safetensors"));
        let mut header = Map::new();
        let mut at = 0;
        for number in 0..tensors {
            // One byte in two thousand apart, so that no two begin alike.
            let len = (bytes / tensors + number % 7).saturating_sub(number % 3);
            let entry = json!({"dtype": "U8", "shape": [len], "data_offsets": [at, at + len]});
            header.insert(format!("layer.{number}.weight"), entry);
            at += len;
        }
        let mut text = serde_json::to_vec(&header)?;
        text.resize(text.len().next_multiple_of(8), b' ');
        let mut out = BufWriter::with_capacity(CHUNK_BYTES, File::create(&path)?);
        out.write_all(&(text.len() as u64).to_le_bytes())?;
        out.write_all(&text)?;
        write_noise(&mut out, at)?;
        let file = out
            .into_inner()
            .map_err(std::io::IntoInnerError::into_error)?;
        file.sync_all()?;
        let bytes = file.metadata()?.len();
        let name = name.to_owned();
        Ok(Self {
            name,
            path,
            bytes,
            tensors,
            granularity: "model",
        })
    }

    /// The same file under another name, put together otherwise.
    pub(crate) fn by(&self, granularity: &'static str) -> Self {
        let name = format!("{}-by-{granularity}", self.name);
        Self {
            name,
            granularity,
            ..self.clone()
        }
    }

    /// Takes the file out of the page cache; an error where that cannot be done.
    pub(crate) fn make_cold(&self) -> Anything<()> {
        let file = File::open(&self.path)?;
        for _ in 0..COLD_TRIES {
            fadvise(&file, 0, None, Advice::DontNeed)?;
            let is_cold = self.is_cold(&file)?;
            // To ask has had the kernel read ahead.
            fadvise(&file, 0, None, Advice::DontNeed)?;
            if is_cold {
                return Ok(());
            }
        }
        Err("the page cache keeps the file".into())
    }

    /// Whether none of some bytes is in the page cache. What is read ahead when one is asked for may be there
    /// before the kernel says that it was not.
    fn is_cold(&self, file: &File) -> Anything<bool> {
        let mut byte = [0];
        for part in 1..8 {
            let at = self.bytes / 8 * part;
            let mut slices = [IoSliceMut::new(&mut byte)];
            match preadv2(file, &mut slices, at, ReadWriteFlags::NOWAIT) {
                Ok(_) => return Ok(false),
                // Not there, or the file system cannot say.
                Err(Errno::AGAIN | Errno::OPNOTSUPP) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }

    /// Reads all of it with so many threads, each into one buffer; how long it took, in seconds.
    pub(crate) fn read_by(&self, threads: u64) -> Anything<f64> {
        let file = File::open(&self.path)?;
        let chunk = CHUNK_BYTES as u64;
        let (done, us) = timed_us(|| {
            thread::scope(|scope| {
                let readers: Vec<_> = (0..threads)
                    .map(|first| {
                        let file = &file;
                        scope.spawn(move || -> std::io::Result<()> {
                            let mut buffer = vec![0; CHUNK_BYTES];
                            let mut at = first * chunk;
                            while at < self.bytes {
                                file.read_at(&mut buffer, at)?;
                                at += threads * chunk;
                            }
                            Ok(())
                        })
                    })
                    .collect();
                readers.into_iter().try_for_each(|reader| {
                    let done = reader.join();
                    done.unwrap_or_else(|_| Err(std::io::Error::other("a reader panicked")))
                })
            })
        });
        done?;
        Ok(us / 1e6)
    }

    /// Reads all of it into fresh memory, as filling a segment does; in seconds.
    pub(crate) fn fill_memory(&self) -> Anything<f64> {
        let file = File::open(&self.path)?;
        let (done, us) = timed_us(|| -> Anything<()> {
            let mut memory = memmap2::MmapMut::map_anon(usize::try_from(self.bytes)?)?;
            let mut at = 0;
            for chunk in memory.chunks_mut(CHUNK_BYTES) {
                file.read_exact_at(chunk, at)?;
                at += chunk.len() as u64;
            }
            Ok(())
        });
        done?;
        Ok(us / 1e6)
    }
}

/// Bytes of which no two blocks are alike, quickly: a file of 10 GB must not take a minute.
fn write_noise(out: &mut impl Write, bytes: u64) -> Anything<()> {
    let mut block = vec![0; CHUNK_BYTES];
    let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
    for word in block.chunks_exact_mut(8) {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        word.copy_from_slice(&(state ^ state >> 31).to_le_bytes());
    }
    let mut left = bytes;
    let mut number: u64 = 0;
    while left > 0 {
        // Every page of it has the number of its block.
        for page in block.chunks_exact_mut(4096) {
            page[..8].copy_from_slice(&number.to_le_bytes());
        }
        let len = usize::try_from(left.min(CHUNK_BYTES as u64))?;
        out.write_all(&block[..len])?;
        left -= len as u64;
        number += 1;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_a_safetensors_file() {
        let dir = std::env::temp_dir().join(format!("mrm-gpu-model-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let model = ModelFile::write(&dir, "m", 100_000, 5).unwrap();
        let bytes = std::fs::read(&model.path).unwrap();
        model.read_by(2).unwrap();
        model.fill_memory().unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
        let len = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
        let header: Map<String, serde_json::Value> =
            serde_json::from_slice(&bytes[8..8 + len]).unwrap();
        assert_eq!(header.len(), 5);
        let ends = header
            .values()
            .map(|tensor| tensor["data_offsets"][1].as_u64().unwrap());
        assert_eq!(ends.max().unwrap() + 8 + len as u64, model.bytes);
        assert_eq!(bytes.len() as u64, model.bytes);
    }
}
