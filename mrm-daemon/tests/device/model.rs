//! Models to be put on a device, and what must be there then.

use mrm_cuda::{Export, Stream};
use mrm_daemon::degraded::Degraded;
use mrm_daemon::device::{Device, DeviceImage, Exported, Feed, FileFeed, FillOrder, HostFeed};
use mrm_daemon::memory::HostSegment;
use mrm_daemon::source::{FileSource, settle};
use mrm_proto::dtype::DType;
use mrm_proto::layout::{Granularity, Layout};
use mrm_proto::table::{ModelKind, Table, TableBuilder};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

/// Sizes that are no multiple of anything, and none; two files, of which the second begins with a
/// tensor at an odd offset.
pub(crate) const SMALL: [&[u64]; 2] = [&[1, 256, 0, 5000, 255, 257, 3], &[1, 70_001, 8, 0, 1023]];
/// With tensors that are worth a copy of their own, and small ones between them.
pub(crate) const LARGE: [&[u64]; 2] = [&[(2 << 20) + 5, 7, 3 << 20, 300], &[9, (1 << 20) + 1]];

pub(crate) const GRANULARITIES: [Granularity; 3] = [
    Granularity::Model,
    Granularity::Block { block_bytes: 4096 },
    Granularity::Tensor,
];

pub(crate) struct Model {
    pub(crate) table: Arc<[u8]>,
    pub(crate) files: Vec<Vec<u8>>,
}

impl Model {
    /// Of tensors of these sizes, by file. Each file has a header of other bytes, and a tail.
    pub(crate) fn new(sizes: &[&[u64]]) -> Self {
        let mut builder = TableBuilder::new(ModelKind::Safetensors);
        let mut files = Vec::new();
        for (number, sizes) in sizes.iter().enumerate() {
            let file = builder.segment(&format!("{number}.safetensors"));
            let mut at = 61 + number as u64;
            for (index, bytes) in sizes.iter().enumerate() {
                let name = format!("{number}.{index}");
                builder.tensor(&name, DType::U8, &[*bytes], file, at, *bytes);
                at += bytes;
            }
            files.push(noise(number as u64 + 1, at + 13));
        }
        Self {
            table: builder.build().expect("a table").into(),
            files,
        }
    }

    fn layout(&self, granularity: Granularity) -> Layout {
        let table = Table::parse(&self.table).expect("a table");
        Layout::new(&table, granularity).expect("a layout")
    }

    /// What each allocation must hold.
    pub(crate) fn expected(&self, granularity: Granularity) -> Vec<Vec<u8>> {
        let layout = self.layout(granularity);
        let sizes = layout.allocations_bytes().iter();
        let mut images: Vec<Vec<u8>> = sizes.map(|bytes| vec![0; *bytes as usize]).collect();
        for tensor in Table::parse(&self.table).expect("a table").iter() {
            let tensor = tensor.expect("a tensor");
            let Some(place) = layout.place(tensor.position) else {
                continue;
            };
            let (from, to, bytes) = (
                tensor.offset as usize,
                place.offset_bytes as usize,
                tensor.bytes as usize,
            );
            images[place.allocation as usize][to..to + bytes]
                .copy_from_slice(&self.files[tensor.segment as usize][from..from + bytes]);
        }
        images
    }

    pub(crate) fn feeds(&self) -> Vec<Arc<HostFeed>> {
        let feed = |bytes: &Vec<u8>| {
            let segment = HostSegment::holding(bytes, &Degraded::new()).expect("a segment");
            HostFeed::resident("file", Arc::new(segment), *blake3::hash(bytes).as_bytes())
        };
        self.files.iter().map(feed).collect()
    }

    /// The same as files in `dir`.
    pub(crate) fn in_files(&self, dir: &Path) -> Vec<FileFeed> {
        let file = |(number, bytes): (usize, &Vec<u8>)| {
            let name = format!("{number}.safetensors");
            std::fs::write(dir.join(&name), bytes).expect("written");
            let source = FileSource::registered(dir, Path::new(&name)).expect("a file");
            let identity = settle(&[&source]).expect("left alone")[0];
            FileFeed {
                source: Arc::new(source),
                identity,
                check: Some(mrm_daemon::format::HeaderCheck::of(&bytes[..50])),
            }
        };
        self.files.iter().enumerate().map(file).collect()
    }

    /// An order with the exact charge.
    pub(crate) fn order(&self, device: &Device, granularity: Granularity, feed: Feed) -> FillOrder {
        FillOrder {
            table: Arc::clone(&self.table),
            granularity,
            charge_bytes: device.charge_for(&self.layout(granularity)).0,
            feed,
            foreign: false,
            progress: Arc::new(AtomicU64::new(0)),
            cancel: Arc::new(AtomicBool::new(false)),
        }
    }

    /// Checks all of an image against what must be there, through what clients get of it where
    /// this process can.
    #[track_caller]
    pub(crate) fn check(&self, device: &Device, image: &DeviceImage) {
        let expected = self.expected(image.granularity());
        assert_eq!(image.exports().len(), expected.len());
        assert_eq!(image.allocations().len(), expected.len());
        let stream = Stream::new(device.context()).expect("a stream");
        for (at, expected) in expected.iter().enumerate() {
            let bytes = expected.len() as u64;
            let mut read = vec![0xaa; expected.len()];
            match &image.exports()[at] {
                Exported::Fd(fd) => {
                    let export = Export::Vmm(fd.try_clone().expect("a descriptor"));
                    let sharing = image.mechanism().sharing();
                    let mapping = sharing
                        .import(device.context(), export, bytes)
                        .expect("imported");
                    stream
                        .copy_out(mapping.view(0, bytes).expect("a view"), &mut read)
                        .expect("read");
                    mapping.close(&[]).expect("closed");
                }
                Exported::Handle(_) => {
                    let view = image.allocations()[at].view(0, bytes).expect("a view");
                    stream.copy_out(view, &mut read).expect("read");
                }
            }
            let wrong = read
                .iter()
                .zip(expected)
                .position(|(read, byte)| read != byte);
            assert_eq!(wrong, None, "allocation {at} of {:?}", image.granularity());
        }
    }
}

/// Bytes that follow from `seed`.
fn noise(seed: u64, bytes: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..bytes)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 24) as u8
        })
        .collect()
}
