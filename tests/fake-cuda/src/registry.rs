//! How much device memory all processes of the pretended machine use together.
//!
//! Every block of device memory is a memfd with an open-file-description lock. The kernel drops
//! that lock when the last descriptor *and* the last mapping of the block are gone, wherever they
//! were: in this process, in another, or on their way through a socket; and `/proc/locks` lists
//! the locks of all processes. So a block is alive exactly while its lock is listed, and a file of
//! (device, block, size) under a lock is all that the processes have to share.

use rustix::fs::{FlockOperation, flock};
use std::collections::{HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// What identifies a block on this machine: device and inode number of its memfd.
pub(crate) type Inode = (u64, u64);

const RECORD_BYTES: usize = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Record {
    device: u32,
    inode: Inode,
    bytes: u64,
}

impl Record {
    fn encode(&self) -> [u8; RECORD_BYTES] {
        let mut raw = [0; RECORD_BYTES];
        raw[0..8].copy_from_slice(&u64::from(self.device).to_le_bytes());
        raw[8..16].copy_from_slice(&self.inode.0.to_le_bytes());
        raw[16..24].copy_from_slice(&self.inode.1.to_le_bytes());
        raw[24..32].copy_from_slice(&self.bytes.to_le_bytes());
        raw
    }

    fn decode(raw: &[u8]) -> Option<Self> {
        let mut words = raw.chunks_exact(8).map(|word| {
            word.iter()
                .rev()
                .fold(0_u64, |value, byte| value << 8 | u64::from(*byte))
        });
        Some(Self {
            device: u32::try_from(words.next()?).ok()?,
            inode: (words.next()?, words.next()?),
            bytes: words.next()?,
        })
    }
}

/// The shared file.
#[derive(Debug)]
pub(crate) struct Registry {
    file: File,
    capacity_bytes: u64,
}

impl Registry {
    pub(crate) fn open(dir: &Path, capacity_bytes: u64) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(dir.join("memory"))?;
        // Without this list no memory would ever be seen to come back.
        File::open("/proc/locks")?;
        Ok(Self {
            file,
            capacity_bytes,
        })
    }

    /// Charges a block that exists and is locked; `false` if the device has not so much left.
    pub(crate) fn charge(&self, device: u32, inode: Inode, bytes: u64) -> io::Result<bool> {
        let _held = Held::take(&self.file)?;
        let mut records = self.read()?;
        if used(&records, device).saturating_add(bytes) > self.capacity_bytes {
            records = self.sweep(records)?;
            if used(&records, device).saturating_add(bytes) > self.capacity_bytes {
                return Ok(false);
            }
        }
        let record = Record {
            device,
            inode,
            bytes,
        };
        self.write_at(records.len(), &record.encode())?;
        Ok(true)
    }

    /// What is free on a device now.
    pub(crate) fn free_bytes(&self, device: u32) -> io::Result<u64> {
        let _held = Held::take(&self.file)?;
        let records = self.sweep(self.read()?)?;
        Ok(self.capacity_bytes.saturating_sub(used(&records, device)))
    }

    fn read(&self) -> io::Result<Vec<Record>> {
        let mut raw = vec![0; usize::try_from(self.file.metadata()?.len()).unwrap_or(0)];
        self.file.read_exact_at(&mut raw, 0)?;
        // A process that died while it wrote may have left a part of a record, or one twice.
        let mut seen = HashSet::new();
        Ok(raw
            .chunks_exact(RECORD_BYTES)
            .filter_map(Record::decode)
            .filter(|record| seen.insert(record.inode))
            .collect())
    }

    /// Drops the records of blocks that are gone.
    fn sweep(&self, records: Vec<Record>) -> io::Result<Vec<Record>> {
        let mut alive = alive()?;
        for _ in 1..LOOKS {
            if records.iter().all(|record| alive.contains(&record.inode)) {
                break;
            }
            alive.extend(self::alive()?);
        }
        let kept: Vec<Record> = records
            .iter()
            .copied()
            .filter(|record| alive.contains(&record.inode))
            .collect();
        if kept.len() < records.len() {
            let raw: Vec<u8> = kept.iter().flat_map(Record::encode).collect();
            self.write_at(0, &raw)?;
        }
        Ok(kept)
    }

    fn write_at(&self, index: usize, raw: &[u8]) -> io::Result<()> {
        let offset = (index * RECORD_BYTES) as u64;
        self.file.write_all_at(raw, offset)?;
        self.file.set_len(offset + raw.len() as u64)
    }
}

/// How often a lock must be missing in the kernel's list to be none: a list that changes while it
/// is read can leave out what has been there all the time.
const LOOKS: usize = 3;

fn used(records: &[Record], device: u32) -> u64 {
    let mut by_device: HashMap<u32, u64> = HashMap::new();
    for record in records {
        let sum = by_device.entry(record.device).or_default();
        *sum = sum.saturating_add(record.bytes);
    }
    by_device.get(&device).copied().unwrap_or(0)
}

/// The inodes of all files on this machine that hold a lock of an open file description.
fn alive() -> io::Result<HashSet<Inode>> {
    let mut text = String::new();
    File::open("/proc/locks")?.read_to_string(&mut text)?;
    Ok(text.lines().filter_map(inode).collect())
}

/// From `1: OFDLCK ADVISORY  READ -1 00:01:11827 0 EOF`.
fn inode(line: &str) -> Option<Inode> {
    let mut words = line.split_whitespace().skip_while(|word| *word != "OFDLCK");
    let place = words.nth(4)?;
    let mut parts = place.split(':');
    let major = u32::from_str_radix(parts.next()?, 16).ok()?;
    let minor = u32::from_str_radix(parts.next()?, 16).ok()?;
    Some((
        rustix::fs::makedev(major, minor),
        parts.next()?.parse().ok()?,
    ))
}

/// The registry's lock, for as long as this lives.
struct Held<'a>(&'a File);

impl<'a> Held<'a> {
    fn take(file: &'a File) -> io::Result<Self> {
        flock(file, FlockOperation::LockExclusive)?;
        Ok(Self(file))
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        // Fails only for a descriptor that is none.
        let _unlocked = flock(self.0, FlockOperation::Unlock);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_their_encoding() {
        let record = Record {
            device: 3,
            inode: (7, u64::MAX),
            bytes: 1 << 40,
        };
        assert_eq!(Record::decode(&record.encode()), Some(record));
    }

    #[test]
    fn reads_the_kernel_list_of_locks() {
        let line = "1: OFDLCK ADVISORY  READ -1 00:1f:11827 0 EOF";
        assert_eq!(inode(line), Some((rustix::fs::makedev(0, 0x1f), 11827)));
        assert_eq!(
            inode("2: -> OFDLCK ADVISORY  READ -1 00:01:5 0 EOF").map(|i| i.1),
            Some(5)
        );
        assert_eq!(inode("3: FLOCK  ADVISORY  WRITE 1 00:1f:11827 0 EOF"), None);
    }

    #[test]
    fn what_is_not_locked_does_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(dir.path(), 100).unwrap();
        assert!(registry.charge(0, (0, 0), 80).unwrap());
        assert!(!registry.charge(1, (0, 0), 101).unwrap());
        assert!(
            registry.charge(0, (0, 1), 80).unwrap(),
            "the first was nobody's"
        );
        assert_eq!(registry.free_bytes(0).unwrap(), 100);
    }
}
