//! Builders of files for tests.

use crate::source::{Identity, Source, SourceError};
use mrm_proto::dtype::DType;
use mrm_proto::name::FileName;
use std::fmt::Write;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// The image of a safetensors file with this header and `data_bytes` bytes of data.
pub(crate) fn image(header: &str, data_bytes: usize) -> Vec<u8> {
    raw(header.as_bytes(), data_bytes)
}

/// The same for a header that need not be text.
pub(crate) fn raw(header: &[u8], data_bytes: usize) -> Vec<u8> {
    let mut image = (header.len() as u64).to_le_bytes().to_vec();
    image.extend_from_slice(header);
    image.extend((0..data_bytes).map(|i| (i % 251) as u8));
    image
}

/// Writes headers whose tensors follow each other.
#[derive(Debug, Clone, Default)]
pub(crate) struct Builder {
    fields: Vec<String>,
    data_bytes: u64,
}

impl Builder {
    pub(crate) fn metadata(mut self, pairs: &[(&str, &str)]) -> Self {
        let pairs: Vec<_> = pairs.iter().map(|(k, v)| format!("{k:?}:{v:?}")).collect();
        self.fields
            .push(format!("\"__metadata__\":{{{}}}", pairs.join(",")));
        self
    }

    pub(crate) fn tensor(mut self, name: &str, dtype: DType, shape: &[u64]) -> Self {
        let begin = self.data_bytes;
        self.data_bytes += dtype
            .byte_len_of_shape(shape)
            .expect("a test's shape is whole");
        let name = serde_json::to_string(name).expect("text is JSON");
        let end = self.data_bytes;
        let mut field = String::new();
        write!(
            field,
            r#"{name}:{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{begin},{end}]}}"#
        )
        .expect("a String takes all");
        self.fields.push(field);
        self
    }

    pub(crate) fn header(&self) -> String {
        format!("{{{}}}", self.fields.join(","))
    }

    pub(crate) fn image(&self) -> Vec<u8> {
        image(
            &self.header(),
            usize::try_from(self.data_bytes).expect("a test's file is small"),
        )
    }
}

/// A file of one tensor of four bytes.
pub(crate) fn one_tensor(name: &str) -> Vec<u8> {
    Builder::default().tensor(name, DType::F32, &[1]).image()
}

/// An index that puts each tensor in a shard.
pub(crate) fn index(weights: &[(&str, &str)]) -> Vec<u8> {
    let pairs: Vec<_> = weights
        .iter()
        .map(|(t, s)| format!("{t:?}:{s:?}"))
        .collect();
    format!(
        r#"{{"metadata":{{"total_size":8}},"weight_map":{{{}}}}}"#,
        pairs.join(",")
    )
    .into()
}

/// Bytes that pretend to be a file, of any length: what lies after them reads as the file's end.
#[derive(Debug)]
pub(crate) struct Memory {
    pub(crate) bytes: Vec<u8>,
    pub(crate) said_bytes: u64,
}

impl Source for Memory {
    fn label(&self) -> &str {
        "memory"
    }

    fn identity(&self) -> Result<Identity, SourceError> {
        Ok(Identity {
            dev: 1,
            ino: 1,
            bytes: self.said_bytes,
            mtime_ns: 0,
            ctime_ns: 0,
        })
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize, SourceError> {
        let rest = usize::try_from(offset)
            .ok()
            .and_then(|at| self.bytes.get(at..));
        let rest = rest.unwrap_or_default();
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// A set of files as [`super::inspect`] takes it.
pub(crate) fn set(files: &[(&str, Vec<u8>)]) -> Vec<(FileName, Arc<dyn Source>)> {
    files
        .iter()
        .map(|(name, bytes)| {
            let said_bytes = bytes.len() as u64;
            let source = Memory {
                bytes: bytes.clone(),
                said_bytes,
            };
            let name = FileName::new(*name).expect("a test's file has a name");
            (name, Arc::new(source) as Arc<dyn Source>)
        })
        .collect()
}
