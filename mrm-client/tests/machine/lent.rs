//! What a daemon lends on a device: made with the same crate that a daemon uses, and granted by a
//! fake one.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::expect_used,
    clippy::panic,
    reason = "each test binary uses a part of it, and it fails loudly"
)]

use crate::fake::{Content, Session};
use mrm_cuda::{Context, Export, Mechanism, Sealed, Stream, probe};
use mrm_proto::dtype::DType;
use mrm_proto::ids::{LeaseId, RequestId, VersionId};
use mrm_proto::layout::{Granularity, Layout};
use mrm_proto::reply::{Handed, IpcHandle, OnDevice, Opened, Origin, Reply, Sharing};
use mrm_proto::table::{ModelKind, Table, TableBuilder};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Most descriptors of allocations that a frame carries.
pub const PER_FRAME: usize = 252;
/// What each tensor has, of `U8`.
pub const TENSOR_BYTES: u64 = 1000;

/// Weights on a device, and their table.
pub struct Lent {
    pub content: Content,
    pub on_device: OnDevice,
    /// What travels, one an allocation; empty with legacy sharing.
    pub fds: Vec<OwnedFd>,
    pub handles: Vec<IpcHandle>,
    _memory: Vec<Sealed>,
}

/// What byte `at` of tensor `i` is.
pub fn byte_of(i: u64, at: u64) -> u8 {
    (i.wrapping_mul(31).wrapping_add(at) % 251).to_le_bytes()[0]
}

pub fn name_of(i: u64) -> String {
    format!("t{i}")
}

/// A table of `tensors` tensors, and one without bytes.
pub fn table_of(tensors: u64) -> Vec<u8> {
    let mut builder = TableBuilder::new(ModelKind::Safetensors);
    let file = builder.segment("model.safetensors");
    for i in 0..tensors {
        let at = 64 + i * TENSOR_BYTES;
        builder.tensor(
            &name_of(i),
            DType::U8,
            &[10, TENSOR_BYTES / 10],
            file,
            at,
            TENSOR_BYTES,
        );
    }
    let end = 64 + tensors * TENSOR_BYTES;
    builder.tensor("empty", DType::F32, &[0, 3], file, end, 0);
    builder.build().expect("a table")
}

impl Lent {
    /// Puts `tensors` tensors on the device of this process with that number.
    pub fn new(ordinal: usize, tensors: u64, granularity: Granularity, how: Mechanism) -> Self {
        let driver = probe().expect("a driver");
        let device = driver.devices().expect("devices").swap_remove(ordinal);
        let context = Context::retain(driver, device.uuid).expect("a context");
        let stream = Stream::new(&context).expect("a stream");
        let bytes = table_of(tensors);
        let table = Table::parse(&bytes).expect("a table");
        let layout = Layout::new(&table, granularity).expect("a layout");
        let (mut memory, mut fds, mut handles) = (Vec::new(), Vec::new(), Vec::new());
        for (index, size) in layout.allocations_bytes().iter().enumerate() {
            let mut allocation = how.sharing().allocate(&context, *size).expect("room");
            for i in 0..tensors {
                let position = table.find(&name_of(i)).expect("there").position;
                let place = layout.place(position).expect("bytes");
                if place.allocation as usize == index {
                    let image: Vec<u8> = (0..TENSOR_BYTES).map(|at| byte_of(i, at)).collect();
                    allocation
                        .copy_in(place.offset_bytes, &image, &stream)
                        .expect("copies");
                }
            }
            let sealed = allocation.seal(&stream).expect("seals");
            match sealed.export().expect("exports") {
                Export::Vmm(fd) => fds.push(fd),
                Export::Legacy(handle) => handles.push(IpcHandle(handle)),
            }
            memory.push(sealed);
        }
        let on_device = OnDevice {
            uuid: device.uuid,
            sharing: match how {
                Mechanism::Vmm => Sharing::Vmm,
                Mechanism::Legacy => Sharing::Legacy,
            },
            granularity,
            allocations_bytes: layout.allocations_bytes().to_vec(),
            handles: Vec::new(),
        };
        Self {
            content: Content::of(&bytes, &[]),
            on_device,
            fds,
            handles,
            _memory: memory,
        }
    }

    pub fn vmm(tensors: u64, granularity: Granularity) -> Self {
        Self::new(0, tensors, granularity, Mechanism::Vmm)
    }

    /// The final reply, as if nothing had been handed before.
    pub fn opened(&self, lease: u64, version: u64) -> Opened {
        Opened {
            lease: LeaseId(lease),
            version: VersionId(version),
            origin: Origin::Promoted,
            device: Some(self.on_device.clone()),
            ..self.content.opened(lease, version)
        }
    }

    /// The descriptors of allocations `from` to `to`.
    pub fn some(&self, from: usize, to: usize) -> Vec<BorrowedFd<'_>> {
        self.fds[from..to].iter().map(AsFd::as_fd).collect()
    }

    /// Grants all of it, in as many frames as it takes.
    pub fn grant(&self, session: &mut Session, id: RequestId, lease: u64, version: u64) {
        let mut opened = self.opened(lease, version);
        let all = self.fds.len();
        let mut from = 0;
        while all - from > PER_FRAME {
            let handed = Handed {
                from: from as u64,
                handles: Vec::new(),
            };
            let fds = self.some(from, from + PER_FRAME);
            session.send(id, &Reply::Handed(handed), &fds);
            from += PER_FRAME;
        }
        if let Some(on_device) = &mut opened.device {
            on_device.handles.clone_from(&self.handles);
        }
        let mut fds = vec![self.content.table.as_fd()];
        fds.extend(self.some(from, all));
        session.send(id, &Reply::Opened(opened), &fds);
    }

    /// Grants every open of the session, with leases from `first_lease`.
    pub fn serve(&self, session: &mut Session, first_lease: u64) {
        let mut lease = first_lease;
        while let Some((id, request, _)) = session.next_asking() {
            use mrm_proto::request::Request;
            assert!(matches!(request, Request::Open(_) | Request::OpenFiles(_)));
            self.grant(session, id, lease, 7);
            lease += 1;
        }
    }
}

/// The bytes at an address of the pretended device, which is one of this process.
pub fn read(pointer: u64, bytes: u64) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let memory = std::fs::File::open("/proc/self/mem").expect("own memory");
    let mut image = vec![0; usize::try_from(bytes).expect("small")];
    memory.read_exact_at(&mut image, pointer).expect("mapped");
    image
}
