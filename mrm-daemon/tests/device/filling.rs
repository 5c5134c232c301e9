//! What is filled is what was to be filled, and nothing is left of what is not.

use crate::machine::{await_that, calls, device, free_bytes, inject, on_machine};
use crate::model::{GRANULARITIES, Model, SMALL};
use mrm_cuda::Mechanism::{Legacy, Vmm};
use mrm_cuda::release_deferred;
use mrm_daemon::device::{Device, DeviceImage, DeviceSettings, Feed, FillError, FreeError};
use mrm_daemon::transfer::{Completion, Lost};
use mrm_proto::dtype::DType;
use mrm_proto::error::ErrorCode;
use mrm_proto::layout::Granularity;
use mrm_proto::table::{ModelKind, TableBuilder};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use crate::machine::DEADLINE;

/// A completion, and where its outcome arrives.
pub(crate) fn completion<T: Send + 'static>() -> (Completion<T>, Receiver<Result<T, Lost>>) {
    let (sender, inbox) = channel();
    (
        Completion::new(move |outcome| drop(sender.send(outcome))),
        inbox,
    )
}

pub(crate) fn next<T>(inbox: &Receiver<Result<T, Lost>>) -> T {
    let outcome = inbox.recv_timeout(DEADLINE).expect("an outcome in time");
    outcome.expect("not lost")
}

/// Staging buffers so small and odd that tensors are cut everywhere.
fn odd(stage_bytes: u64) -> DeviceSettings {
    DeviceSettings {
        stage_bytes,
        stage_slots: 3,
        ..DeviceSettings::default()
    }
}

#[test]
fn every_granularity_is_exact_whatever_the_feed() {
    on_machine(&[], || {
        let model = Model::new(&SMALL);
        let dir = tempfile::tempdir().expect("a directory");
        let files = model.in_files(dir.path());
        for how in [Vmm, Legacy] {
            for stage_bytes in [1000, 70_001, 8 << 20] {
                let device = device(0, how, &odd(stage_bytes));
                let baseline = free_bytes(&device);
                let mut digests = Vec::new();
                for granularity in GRANULARITIES {
                    let feeds = [Feed::Host(model.feeds()), Feed::Files(files.clone())];
                    let images = feeds.map(|feed| {
                        let order = model.order(&device, granularity, feed);
                        let image = device.fill(&order).expect("filled");
                        model.check(&device, &image);
                        assert_eq!(image.charged_bytes(), order.charge_bytes);
                        assert_eq!(order.progress.load(Ordering::Relaxed), image.bytes());
                        *image.digest()
                    });
                    assert_eq!(images[0], images[1], "the feed does not matter");
                    digests.push(images[0]);
                }
                digests.dedup();
                assert_eq!(digests.len(), 3, "the granularity does");
                assert_eq!(free_bytes(&device), baseline);
            }
        }
    });
}

#[test]
fn the_device_does_not_pause_between_allocations() {
    on_machine(&[], || {
        let model = Model::new(&SMALL);
        let (first, second) = (device(0, Vmm, &odd(4096)), device(1, Vmm, &odd(4096)));
        let calls_of = |device: &Device, feed| {
            let order = model.order(device, Granularity::Tensor, feed);
            let before = calls().len();
            let image = device.fill(&order).expect("filled");
            model.check(device, &image);
            (calls().split_off(before), Arc::new(image))
        };
        let (from_host, image) = calls_of(&first, Feed::Host(model.feeds()));
        let (from_peer, _) = calls_of(&second, Feed::Peer(image));
        for (made, copy) in [
            (from_host, "cuMemcpyHtoDAsync_v2"),
            (from_peer, "cuMemcpyPeerAsync"),
        ] {
            let copied = made.iter().rposition(|call| call == copy);
            let waited = made.iter().position(|call| call == "cuStreamSynchronize");
            assert!(copied.is_some() && copied < waited, "{made:?}");
        }
    });
}

#[test]
fn other_bytes_have_another_digest() {
    on_machine(&[], || {
        let device = device(0, Vmm, &odd(4096));
        let digest = |model: &Model| {
            let order = model.order(&device, Granularity::Model, Feed::Host(model.feeds()));
            *device.fill(&order).expect("filled").digest()
        };
        let (same, mut other) = (Model::new(&SMALL), Model::new(&SMALL));
        assert_eq!(digest(&same), digest(&other));
        other.files[1][100] ^= 1;
        assert_ne!(digest(&same), digest(&other));
    });
}

#[test]
fn another_device_feeds_it() {
    on_machine(&[], || {
        let model = Model::new(&SMALL);
        for how in [Vmm, Legacy] {
            let (first, second) = (device(0, how, &odd(4096)), device(1, how, &odd(4096)));
            let baseline = free_bytes(&second);
            for granularity in GRANULARITIES {
                let order = model.order(&first, granularity, Feed::Host(model.feeds()));
                let image = Arc::new(first.fill(&order).expect("filled"));
                let order = model.order(&second, granularity, Feed::Peer(Arc::clone(&image)));
                let copy = second.fill(&order).expect("copied");
                model.check(&second, &copy);
                assert_eq!(copy.digest(), image.digest());
                assert_eq!(order.progress.load(Ordering::Relaxed), image.bytes());
                let other = model.order(
                    &second,
                    Granularity::Block { block_bytes: 512 },
                    Feed::Peer(Arc::clone(&image)),
                );
                let error = second.fill(&other).expect_err("another granularity");
                assert!(matches!(error, FillError::PeerDiffers { .. }), "{error}");
                drop((order, other));
                copy.free().expect("freed");
                let image = Arc::into_inner(image).expect("nobody else has it");
                image.free().expect("freed");
            }
            assert_eq!(free_bytes(&second), baseline);
        }
    });
}

#[test]
fn what_cannot_be_filled_says_why_and_leaves_nothing() {
    on_machine(&[("CAPACITY", "16MiB")], || {
        let device = device(0, Vmm, &DeviceSettings::default());
        let baseline = free_bytes(&device);
        let small = Model::new(&SMALL);
        let order = || small.order(&device, Granularity::Model, Feed::Host(small.feeds()));
        let refused = |order| {
            let error = device.fill(&order).expect_err("refused");
            assert_eq!(free_bytes(&device), baseline, "{error}");
            error
        };

        let large = Model::new(&[&[12 << 20, 12 << 20]]);
        for granularity in [Granularity::Model, Granularity::Tensor] {
            let error = refused(large.order(&device, granularity, Feed::Host(large.feeds())));
            assert_eq!(error.code(), ErrorCode::OutOfMemory, "{error}");
            let FillError::OutOfMemory { free_bytes, .. } = &error else {
                panic!("{error}");
            };
            assert!(free_bytes.is_some());
            assert!(error.to_string().contains("has no room for"), "{error}");
        }

        let mut cheap = order();
        cheap.charge_bytes -= 1;
        let error = refused(cheap);
        assert!(matches!(error, FillError::TooLarge { .. }), "{error}");

        let cancelled = order();
        cancelled.cancel.store(true, Ordering::Relaxed);
        assert_eq!(refused(cancelled).code(), ErrorCode::Cancelled);

        let mut opaque = TableBuilder::new(ModelKind::Opaque);
        opaque.segment("weights.bin");
        let mut order_of = order();
        order_of.table = opaque.build().expect("a table").into();
        assert_eq!(refused(order_of).code(), ErrorCode::NoTensors);

        let mut missing = order();
        missing.feed = Feed::Host(small.feeds()[..1].to_vec());
        assert_eq!(refused(missing).code(), ErrorCode::Internal);

        let mut beyond = TableBuilder::new(ModelKind::Safetensors);
        let file = beyond.segment("0.safetensors");
        beyond.tensor(
            "w",
            DType::U8,
            &[100],
            file,
            small.files[0].len() as u64 - 50,
            100,
        );
        let mut order_of = order();
        order_of.table = beyond.build().expect("a table").into();
        assert_eq!(refused(order_of).code(), ErrorCode::Internal);

        let mut damaged = order();
        damaged.table = small.table[..70].into();
        assert_eq!(refused(damaged).code(), ErrorCode::Internal);
    });
}

#[test]
fn threads_of_the_device_fill_and_free() {
    on_machine(&[], || {
        let model = Model::new(&SMALL);
        let device = device(0, Vmm, &odd(4096));
        let baseline = free_bytes(&device);
        let mut images = Vec::new();
        for foreign in [false, true, false, true] {
            let (completion, inbox) = completion();
            let mut order = model.order(&device, Granularity::Tensor, Feed::Host(model.feeds()));
            order.foreign = foreign;
            device.fill_async(order, completion);
            images.push(inbox);
        }
        for inbox in images {
            let image = next(&inbox).expect("filled");
            model.check(&device, &image);
            let (done, inbox) = completion();
            device.free_async(Arc::new(image), done);
            next(&inbox).expect("freed");
        }
        assert_eq!(free_bytes(&device), baseline);

        let order = model.order(&device, Granularity::Model, Feed::Host(model.feeds()));
        let image: Arc<DeviceImage> = Arc::new(device.fill(&order).expect("filled"));
        let (done, inbox) = completion();
        device.free_async(Arc::clone(&image), done);
        let error = next(&inbox).expect_err("it is held here");
        assert!(matches!(error, FreeError::InUse { .. }), "{error}");
        drop(image);
        assert_eq!(free_bytes(&device), baseline);

        assert_eq!(device.shut_down(Instant::now() + DEADLINE), []);
    });
}

#[test]
fn memory_that_was_not_taken_back_is_given_back_when_the_device_is_well() {
    on_machine(&[], || {
        let model = Model::new(&SMALL);
        let device = device(0, Vmm, &odd(4096));
        let baseline = free_bytes(&device);
        let order = model.order(&device, Granularity::Tensor, Feed::Host(model.feeds()));
        let image = device.fill(&order).expect("filled");
        inject("cuMemUnmap:4242:3+");
        let error = image.free().expect_err("all but two are refused");
        assert!(error.to_string().contains("error 4242"), "{error}");
        assert!(free_bytes(&device) < baseline);
        inject("");
        let (done, inbox) = completion();
        device.health_async(done);
        next(&inbox).expect("well");
        assert_eq!(release_deferred(), 0);
        await_that("giving it back", || free_bytes(&device) == baseline);
    });
}

#[test]
fn a_lost_device_is_told_from_a_lost_peer() {
    on_machine(&[], || {
        let model = Model::new(&SMALL);
        let (first, second) = (device(0, Vmm, &odd(4096)), device(1, Vmm, &odd(4096)));
        let order = model.order(&first, Granularity::Model, Feed::Host(model.feeds()));
        let image = Arc::new(first.fill(&order).expect("filled"));
        let baseline = free_bytes(&second);

        let copy = model.order(&second, Granularity::Model, Feed::Peer(Arc::clone(&image)));
        // What the driver says does not tell which of the two it is.
        inject("cuMemcpyPeerAsync:719:1:once");
        match second.fill(&copy) {
            Err(FillError::Peer { peer, .. }) => assert_eq!(peer, first.uuid()),
            other => panic!("{other:?}"),
        }

        inject("lost:719@0");
        let error = first.fill(&order).expect_err("lost");
        assert_eq!(error.code(), ErrorCode::DeviceLost);
        assert!(
            error.to_string().contains(&first.uuid().to_string()),
            "{error}"
        );
        let health = first.health().expect_err("lost");
        assert!(health.lost, "{health}");
        second.health().expect("well");

        let order = model.order(&second, Granularity::Model, Feed::Host(model.feeds()));
        let filled = second.fill(&order).expect("the other device is well");
        model.check(&second, &filled);
        filled.free().expect("freed");
        assert_eq!(free_bytes(&second), baseline);

        drop(copy);
        let (done, inbox) = completion();
        first.free_async(image, done);
        next(&inbox).expect_err("lost");
        assert!(release_deferred() > 0, "it stays to be given back");
    });
}
