//! What is remembered of models over a restart: one small file.
//!
//! ```text
//! "MRMSTATS"  8 bytes
//! format      u32, little-endian: 1
//! body        CBOR: the experience, the number of models, then name and memory of each; the number
//!             of orders, then of each the table's digest and, for each file, a list of pieces; the
//!             number of models that had memory of devices kept free, then name and bytes of each
//! digest      BLAKE3 of all before, 32 bytes
//! ```
//! It is replaced as a whole, and believed as a whole or not at all. Earlier releases end after the
//! models, or after the orders; they read what follows as little as this one misses it.
//!
//! ```
//! use mrm_core::policy::Experience;
//! use mrm_daemon::statistics::Statistics;
//! let statistics = Statistics {
//!     experience: Experience::default(),
//!     models: Vec::new(),
//!     orders: Vec::new(),
//! };
//! let bytes = statistics.encode();
//! assert_eq!(Statistics::decode(&bytes)?, statistics);
//! assert!(Statistics::decode(&bytes[1..]).is_err());
//! # Ok::<(), mrm_daemon::statistics::StatisticsError>(())
//! ```

use crate::journal::memories;
use minicbor::{Decoder, Encoder};
use mrm_core::id::Bytes;
use mrm_core::policy::{Experience, Memory};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Its name.
pub const STATISTICS_FILE: &str = "statistics";
/// Most models that are kept: those used last.
pub const MODELS_MAX: usize = 16_384;
/// Longest file that is read.
const BYTES_MAX: u64 = 64 << 20;
const UNFINISHED: &str = "statistics.unfinished";
const MAGIC: &[u8; 8] = b"MRMSTATS";
const FORMAT: u32 = 1;
const DIGEST_BYTES: usize = 32;
const HEAD_BYTES: usize = 12;

/// What is remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statistics {
    /// Of all models together.
    pub experience: Experience,
    /// Of each, by its registered name.
    pub models: Vec<(String, Memory)>,
    /// In which order what is in files is used, the one that was learned first first.
    pub orders: Vec<Order>,
}

/// In which order a model's clients use what is in its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// BLAKE3 of the tensor table.
    pub table: [u8; 32],
    /// Of each file, its pieces in the order of their first use.
    pub files: Vec<Vec<u32>>,
}

/// Why a file of statistics is of no use.
#[derive(Debug, thiserror::Error)]
pub enum StatisticsError {
    /// The system.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It is not one, or not all of one.
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
    /// Another release wrote it.
    #[error("it has format {0}, and this release reads {FORMAT}")]
    Format(u32),
}

impl Statistics {
    /// As bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        let mut out = Encoder::new(&mut bytes);
        // Writing to a vector cannot fail.
        let _ = self.put(&mut out);
        let digest = blake3::hash(&bytes);
        bytes.extend_from_slice(digest.as_bytes());
        bytes
    }

    fn put(
        &self,
        out: &mut Encoder<&mut Vec<u8>>,
    ) -> Result<(), minicbor::encode::Error<std::convert::Infallible>> {
        memories::put_experience(out, &self.experience)?;
        out.u64(self.models.len() as u64)?;
        for (name, memory) in &self.models {
            out.str(name)?;
            memories::put_memory(out, memory)?;
        }
        out.u64(self.orders.len() as u64)?;
        for order in &self.orders {
            out.bytes(&order.table)?.u64(order.files.len() as u64)?;
            for file in &order.files {
                out.array(file.len() as u64)?;
                for piece in file {
                    out.u32(*piece)?;
                }
            }
        }
        let reserves = self.models.iter().map(|(name, of)| (name, of.reserve));
        let reserves = reserves.filter(|(_, reserve)| *reserve > Bytes::ZERO);
        out.u64(reserves.clone().count() as u64)?;
        for (name, reserve) in reserves {
            out.str(name)?.u64(reserve.0)?;
        }
        Ok(())
    }

    /// From bytes.
    ///
    /// # Errors
    /// When they are not all of a file of this format.
    pub fn decode(bytes: &[u8]) -> Result<Self, StatisticsError> {
        let damaged = StatisticsError::Damaged;
        let Some((content, digest)) = bytes.split_last_chunk::<DIGEST_BYTES>() else {
            return Err(damaged("it is too short"));
        };
        let (Some((magic, rest)), true) = (
            content.split_first_chunk::<8>(),
            content.len() >= HEAD_BYTES,
        ) else {
            return Err(damaged("it is too short"));
        };
        if magic != MAGIC {
            return Err(damaged("it does not begin as one"));
        }
        if blake3::hash(content) != *digest {
            return Err(damaged("its checksum is another"));
        }
        let Some((format, body)) = rest.split_first_chunk::<4>() else {
            return Err(damaged("it is too short"));
        };
        let format = u32::from_le_bytes(*format);
        if format != FORMAT {
            return Err(StatisticsError::Format(format));
        }
        Self::get(&mut Decoder::new(body)).map_err(|_| damaged("its body makes no sense"))
    }

    fn get(from: &mut Decoder<'_>) -> Result<Self, minicbor::decode::Error> {
        let experience = memories::get_experience(from)?;
        let mut models = Vec::new();
        for _ in 0..from.u64()? {
            let name = from.str()?.to_owned();
            models.push((name, memories::get_memory(from)?));
        }
        let mut orders = Vec::new();
        if from.position() < from.input().len() {
            for _ in 0..from.u64()? {
                orders.push(get_order(from)?);
            }
        }
        if from.position() < from.input().len() {
            let mut reserves = BTreeMap::new();
            for _ in 0..from.u64()? {
                reserves.insert(from.str()?, Bytes(from.u64()?));
            }
            for (name, memory) in &mut models {
                let reserve = reserves.get(name.as_str());
                memory.reserve = reserve.copied().unwrap_or_default();
            }
        }
        Ok(Self {
            experience,
            models,
            orders,
        })
    }

    /// Reads the file in a directory; `None` if there is none.
    ///
    /// # Errors
    /// When it cannot be read or is of no use.
    pub fn read(dir: &Path) -> Result<Option<Self>, StatisticsError> {
        let file = match File::open(dir.join(STATISTICS_FILE)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let mut bytes = Vec::new();
        file.take(BYTES_MAX + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > BYTES_MAX {
            return Err(StatisticsError::Damaged("it is too long"));
        }
        Self::decode(&bytes).map(Some)
    }

    /// Puts it into a directory, for its owner only to read: it names models.
    ///
    /// # Errors
    /// When the directory takes no file. What was there before is then still there.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        let unfinished = dir.join(UNFINISHED);
        // A link or a file that somebody left there is not written through.
        match fs::remove_file(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let mut options = File::options();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&unfinished)?;
        file.write_all(&self.encode())?;
        file.sync_data()?;
        fs::rename(&unfinished, dir.join(STATISTICS_FILE))
    }
}

fn get_order(from: &mut Decoder<'_>) -> Result<Order, minicbor::decode::Error> {
    let wrong = minicbor::decode::Error::message;
    let table = from.bytes()?.try_into();
    let table = table.map_err(|_| wrong("a digest of another length"))?;
    let mut files = Vec::new();
    for _ in 0..from.u64()? {
        let pieces = from
            .array()?
            .ok_or_else(|| wrong("a list without an end"))?;
        let file: Result<Vec<u32>, _> = (0..pieces).map(|_| from.u32()).collect();
        files.push(file?);
    }
    Ok(Order { table, files })
}

#[cfg(test)]
mod tests {
    use super::*;
    use mrm_core::policy::{LoadMemory, Route};

    fn statistics() -> Statistics {
        let memory = Memory {
            uses: 7,
            idle_us: 1 << 40,
            class: 11,
            gaps: vec![(3, 2), (70, 4)],
            run_us: 5,
            runs: 6,
            loads: vec![LoadMemory {
                route: Route::ToHost,
                bytes: 8192,
                us: 90,
                last: Bytes(4096),
            }],
            tries_thousandths: 1900,
            hits_thousandths: 900,
            reserve: Bytes::ZERO,
        };
        let working = Memory {
            reserve: Bytes(3 << 30),
            ..memory.clone()
        };
        Statistics {
            experience: Experience {
                gaps: vec![(0, 3, 9), (11, 70, 1)],
            },
            models: vec![("org/a".into(), memory), ("b".into(), working)],
            orders: vec![Order {
                table: [7; 32],
                files: vec![vec![3, 0, 70_000], vec![]],
            }],
        }
    }

    #[test]
    fn what_is_written_is_read_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Statistics::read(dir.path()).unwrap().is_none());
        let mut all = statistics();
        all.write(dir.path()).unwrap();
        assert_eq!(Statistics::read(dir.path()).unwrap(), Some(all.clone()));
        all.models.pop();
        all.write(dir.path()).unwrap();
        assert_eq!(Statistics::read(dir.path()).unwrap(), Some(all));
        let left = fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(left, 1);
    }

    #[test]
    fn no_damage_goes_unnoticed() {
        let bytes = statistics().encode();
        for at in 0..bytes.len() {
            assert!(Statistics::decode(&bytes[..at]).is_err(), "cut at {at}");
            let mut flipped = bytes.clone();
            flipped[at] ^= 0x10;
            assert!(Statistics::decode(&flipped).is_err(), "flipped at {at}");
        }
    }

    #[test]
    fn what_earlier_releases_wrote_is_read() {
        let mut all = statistics();
        all.models[1].1.reserve = Bytes::ZERO;
        // Without the number of reserves, which is 0, in one byte; then without that of orders.
        for _ in 0..2 {
            let mut bytes = all.encode();
            let cut = 1 + usize::from(all.orders.is_empty());
            bytes.truncate(bytes.len() - DIGEST_BYTES - cut);
            let digest = blake3::hash(&bytes);
            bytes.extend_from_slice(digest.as_bytes());
            assert_eq!(Statistics::decode(&bytes).unwrap(), all);
            all.orders.clear();
        }
    }

    #[test]
    fn another_format_says_so() {
        let mut bytes = statistics().encode();
        bytes.truncate(bytes.len() - DIGEST_BYTES);
        bytes[8] = 9;
        let digest = blake3::hash(&bytes);
        bytes.extend_from_slice(digest.as_bytes());
        let error = Statistics::decode(&bytes).unwrap_err();
        assert!(matches!(error, StatisticsError::Format(9)), "{error}");
    }

    #[test]
    fn a_count_that_lies_is_no_harm() {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        // A list of 2^63 items.
        bytes.extend_from_slice(&[0x1b, 0x80, 0, 0, 0, 0, 0, 0, 0]);
        let digest = blake3::hash(&bytes);
        bytes.extend_from_slice(digest.as_bytes());
        assert!(Statistics::decode(&bytes).is_err());
    }
}
