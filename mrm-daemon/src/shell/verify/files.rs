//! Where a check of an image finds what of its files is in no tensor.

use crate::catalogue::{Catalogue, OpenFiles};
use crate::device::check::ImageCheck;
use crate::integrity::Verdict;
use crate::keeper::describe::{FileState, SourceRef};
use crate::memory::HostSegment;
use mrm_proto::name::ModelName;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Weak};

/// The files of a version.
pub(super) struct Files {
    pub(super) files: Vec<File>,
    /// What the catalogue knows it by.
    pub(super) name: Option<ModelName>,
    pub(super) catalogue: Arc<Catalogue>,
    /// Its files on disk, once they were needed.
    pub(super) opened: Option<Result<OpenFiles, String>>,
}

/// One of them.
pub(super) struct File {
    pub(super) bytes: u64,
    /// Where it is in host memory, if it is.
    pub(super) memory: Option<Weak<HostSegment>>,
    /// Which state of which file it is.
    pub(super) state: Option<SourceRef>,
}

impl Files {
    /// Checks an image of these files, which is laid out by the table in `table`.
    pub(super) fn check(
        mut self,
        image: &ImageCheck,
        table: &Weak<HostSegment>,
        watch: (&AtomicU64, &dyn Fn() -> bool),
    ) -> Verdict {
        let lengths: Vec<u64> = self.files.iter().map(|file| file.bytes).collect();
        let Some(table) = table.upgrade() else {
            return Verdict::Gone;
        };
        let length = usize::try_from(table.bytes()).unwrap_or(usize::MAX);
        let mut bytes = vec![0; length];
        if let Err(why) = read(&table, 0, &mut bytes) {
            return Verdict::Unchecked(why);
        }
        drop(table);
        let mut rest = |file: usize, at: u64, into: &mut [u8]| self.read(file, at, into);
        image.run(&bytes, &lengths, &mut rest, watch)
    }

    fn read(&mut self, file: usize, at: u64, into: &mut [u8]) -> Result<(), String> {
        let known = self
            .files
            .get(file)
            .ok_or("its table names a file too many")?;
        if let Some(memory) = known.memory.as_ref().and_then(Weak::upgrade) {
            return read(&memory, at, into);
        }
        let Some(SourceRef::File(state)) = known.state else {
            return Err("it is not known which file it was".to_owned());
        };
        self.read_on_disk(state, at, into)
    }

    fn read_on_disk(&mut self, state: FileState, at: u64, into: &mut [u8]) -> Result<(), String> {
        let (catalogue, name) = (&self.catalogue, &self.name);
        let opened = self.opened.get_or_insert_with(|| {
            let spec = name.as_ref().and_then(|name| catalogue.find(name));
            let spec = spec.ok_or("its files are not in host memory, and not in the catalogue")?;
            catalogue
                .open_files(&spec)
                .map_err(|error| error.to_string())
        });
        let opened = opened.as_ref().map_err(Clone::clone)?;
        let mut sources = opened.iter().map(|(_, source)| source);
        let same = sources.find(|source| {
            let identity = source.identity();
            identity.is_ok_and(|identity| FileState::from(identity) == state)
        });
        let source = same.ok_or("its file is not in host memory, and another one on disk now")?;
        let mut done = 0;
        while done < into.len() {
            match source.read_at(at + done as u64, &mut into[done..]) {
                Ok(0) => return Err("its file on disk is shorter than it was".to_owned()),
                Ok(read) => done += read,
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(())
    }
}

fn read(memory: &HostSegment, at: u64, into: &mut [u8]) -> Result<(), String> {
    let mut done = 0;
    while done < into.len() {
        let from = at + done as u64;
        match rustix::io::retry_on_intr(|| rustix::io::pread(memory.fd(), &mut into[done..], from))
        {
            Ok(0) => return Err("its file in host memory is shorter than it was".to_owned()),
            Ok(read) => done += read,
            Err(errno) => return Err(format!("host memory cannot be read: {errno}")),
        }
    }
    Ok(())
}
