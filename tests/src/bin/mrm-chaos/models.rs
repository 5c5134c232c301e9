//! The models that are opened.

use mrm_tests::{Random, model};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A model, as daemon and clients find it.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
}

/// One in so many has the content of the one before.
const COPIES: usize = 10;

/// Writes so many, of 256 KiB to 8 MiB: the largest take several reads. Returns their bytes.
pub(crate) fn write(dir: &Path, count: usize, seed: u64) -> u64 {
    let mut random = Random(seed);
    let mut total = 0;
    let mut content = (0, 0, 0);
    for at in 0..count {
        if at == 0 || at % COPIES > 0 {
            // Those of one length are hashed before they are lent, and the others after that.
            let odd = random.below(2) * random.below(256) * 64;
            let bytes = ((256 << 10) << random.below(6)) + odd;
            content = (bytes, 1 + random.below(5), random.next());
        }
        let (bytes, tensors, seed) = content;
        let file = format!("m{at:03}.safetensors");
        let (_, image) = model::write(dir, &file, bytes, tensors, seed);
        total += image.len() as u64;
        // What is not on the disk cannot be forgotten.
        let synced = std::fs::File::open(dir.join(file)).and_then(|file| file.sync_all());
        synced.expect("syncs");
    }
    total
}

impl Model {
    /// Those in a directory.
    pub(crate) fn list(dir: &Path) -> Vec<Self> {
        let entries = std::fs::read_dir(dir).expect("the models' directory");
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        let name = |path: &Path| {
            let name = path.file_stem().expect("a name");
            name.to_string_lossy().into_owned()
        };
        paths
            .into_iter()
            .map(|path| Self {
                name: name(&path),
                path,
            })
            .collect()
    }
}

/// Has the kernel forget what it read of the files in a directory: the next load is from the disk.
pub(crate) fn forget(dir: &Path) {
    for model in Model::list(dir) {
        if let Ok(file) = std::fs::File::open(&model.path) {
            // Pages that somebody uses just now, or that are not written yet, stay.
            let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
        }
    }
}

/// Name and bytes of each tensor of a file that [`write()`] wrote.
pub(crate) fn parse(file: &[u8]) -> Vec<(String, &[u8])> {
    let header = u64::from_le_bytes(file[..8].try_into().expect("eight bytes"));
    let data = 8 + usize::try_from(header).expect("fits");
    let header: Value = serde_json::from_slice(&file[8..data]).expect("a header");
    let tensors = header.as_object().expect("an object").iter();
    let bytes = |entry: &Value| {
        let offset = |at: usize| entry["data_offsets"][at].as_u64().expect("an offset");
        let offset = |at| data + usize::try_from(offset(at)).expect("fits");
        &file[offset(0)..offset(1)]
    };
    tensors
        .map(|(name, entry)| (name.clone(), bytes(entry)))
        .collect()
}
