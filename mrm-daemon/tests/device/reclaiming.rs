//! What one daemon put on a device, the next one lends: only the descriptors go from one to the
//! other, as through the keeper.

use crate::filling::{completion, next};
use crate::machine::{DEADLINE, calls, device, free_bytes, inject, on_machine};
use crate::model::{GRANULARITIES, Model, SMALL};
use mrm_cuda::Mechanism::{Legacy, Vmm};
use mrm_cuda::release_deferred;
use mrm_daemon::device::{
    Device, DeviceImage, DeviceSettings, Exported, Feed, FillError, ReclaimOrder,
};
use mrm_proto::error::ErrorCode;
use mrm_proto::layout::Granularity;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

fn open(ordinal: usize) -> Device {
    device(ordinal, Vmm, &DeviceSettings::default())
}

/// What the keeper would hold of an image.
fn keep(image: &DeviceImage) -> ReclaimOrder {
    let sizes = image.allocations().iter().map(|one| one.bytes());
    let fds = image.exports().iter().map(|export| match export {
        Exported::Fd(fd) => fd.try_clone().expect("a descriptor"),
        Exported::Handle(_) => panic!("legacy handles keep nothing"),
    });
    ReclaimOrder {
        granularity: image.granularity(),
        allocations: fds.zip(sizes).collect(),
        digest: *image.digest(),
    }
}

fn again(order: &ReclaimOrder) -> ReclaimOrder {
    let copy = |(fd, bytes): &(OwnedFd, u64)| (fd.try_clone().expect("a descriptor"), *bytes);
    ReclaimOrder {
        granularity: order.granularity,
        allocations: order.allocations.iter().map(copy).collect(),
        digest: order.digest,
    }
}

fn fill(device: &Device, model: &Model, granularity: Granularity) -> DeviceImage {
    let order = model.order(device, granularity, Feed::Host(model.feeds()));
    device.fill(&order).expect("filled")
}

#[test]
fn an_image_is_lent_on_by_the_next_daemon() {
    on_machine(&[], || {
        let model = Model::new(&SMALL);
        let (first, other) = (open(0), open(1));
        let baseline = (free_bytes(&first), free_bytes(&other));
        for granularity in GRANULARITIES {
            let image = fill(&first, &model, granularity);
            let (charged_bytes, bytes) = (image.charged_bytes(), image.bytes());
            let order = keep(&image);
            image.free().expect("freed");
            assert_eq!(free_bytes(&first), baseline.0 - charged_bytes);

            let device = open(0);
            let before = calls().len();
            let (done, inbox) = completion();
            device.reclaim_async(order, done);
            let image = next(&inbox).expect("taken over");
            let copied = calls().split_off(before);
            assert!(
                !copied.iter().any(|call| call.contains("cpy")),
                "{copied:?}"
            );
            model.check(&device, &image);
            assert_eq!(image.uuid(), device.uuid());
            assert_eq!(image.granularity(), granularity);
            assert_eq!(
                (image.charged_bytes(), image.bytes()),
                (charged_bytes, bytes)
            );
            assert_eq!(free_bytes(&device), baseline.0 - charged_bytes);
            let filled = fill(&first, &model, granularity);
            assert_eq!(image.digest(), filled.digest());
            filled.free().expect("freed");

            // Another device copies from it.
            let image = Arc::new(image);
            let order = model.order(&other, granularity, Feed::Peer(Arc::clone(&image)));
            let copy = other.fill(&order).expect("copied");
            model.check(&other, &copy);
            drop(order);
            copy.free().expect("freed");
            let image = Arc::into_inner(image).expect("nobody else has it");
            image.free().expect("freed");
            assert_eq!((free_bytes(&device), free_bytes(&other)), baseline);
            assert_eq!(device.shut_down(Instant::now() + DEADLINE), []);
        }
    });
}

#[test]
fn an_image_has_one_descriptor_for_each_allocation() {
    let open_files = || std::fs::read_dir("/proc/self/fd").expect("a list").count();
    // The fake driver has one of its own for all that is allocated or imported.
    const DRIVERS: usize = 1;
    on_machine(&[], || {
        let model = Model::new(&SMALL);
        let device = open(0);
        // The device has made its ring, and the driver what it makes once.
        fill(&device, &model, Granularity::Tensor)
            .free()
            .expect("freed");
        let before = open_files();
        let image = fill(&device, &model, Granularity::Tensor);
        let count = image.allocations().len();
        assert!(count > 5, "{count}");
        assert_eq!(open_files() - before, count * (1 + DRIVERS));
        let order = keep(&image);
        image.free().expect("freed");
        assert_eq!(open_files() - before, count);
        let image = device.reclaim(order).expect("taken over");
        assert_eq!(open_files() - before, count * (1 + DRIVERS));
        image.free().expect("freed");
        assert_eq!(open_files(), before);
    });
}

#[test]
fn what_cannot_be_taken_over_says_why_and_leaves_nothing() {
    on_machine(&[], || {
        let model = Model::new(&SMALL);
        let device = open(0);
        let baseline = free_bytes(&device);
        let image = fill(&device, &model, Granularity::Tensor);
        let refused = |device: &Device, order| {
            let error = device.reclaim(order).expect_err("refused");
            assert_eq!(release_deferred(), 0, "{error}");
            error
        };

        let mut short = keep(&image);
        short.allocations.last_mut().expect("some").1 = 1 << 30;
        let error = refused(&device, short);
        assert_eq!(error.code(), ErrorCode::DeviceFailed, "{error}");
        assert!(
            error.to_string().contains("bytes that were said"),
            "{error}"
        );

        let mut strange = keep(&image);
        let null = std::fs::File::open("/dev/null").expect("a file");
        strange.allocations.last_mut().expect("some").0 = null.into();
        let error = refused(&device, strange);
        assert!(error.to_string().contains("reclaim memory"), "{error}");

        let mut empty = keep(&image);
        empty.allocations.clear();
        assert_eq!(refused(&device, empty).code(), ErrorCode::NoTensors);

        let legacy = crate::machine::device(0, Legacy, &DeviceSettings::default());
        let error = refused(&legacy, keep(&image));
        assert!(error.to_string().contains("vmm"), "{error}");

        model.check(&device, &image);
        image.free().expect("freed");
        assert_eq!(free_bytes(&device), baseline);
    });
}

#[test]
fn taking_over_survives_every_failure() {
    on_machine(&[], || {
        let model = Model::new(&SMALL);
        let device = open(0);
        let baseline = free_bytes(&device);
        let image = fill(&device, &model, Granularity::Tensor);
        let (order, count) = (keep(&image), image.allocations().len());
        image.free().expect("freed");
        let kept_bytes = baseline - free_bytes(&device);
        let before = calls().len();
        device
            .reclaim(again(&order))
            .expect("no fault yet")
            .free()
            .expect("freed");
        let mut functions = calls().split_off(before);
        functions.sort();
        functions.dedup();
        let mut failed = 0;
        for function in functions {
            for (code, nth) in [2, 999, 4242]
                .into_iter()
                .flat_map(|code| [(code, 1), (code, count)])
            {
                let what = format!("{function}:{code}:{nth}");
                inject(&what);
                let outcome = device.reclaim(again(&order));
                inject("");
                match outcome {
                    Ok(image) => image.free().expect("freed"),
                    Err(error) => {
                        failed += 1;
                        assert!(matches!(error, FillError::Driver { .. }), "{what}: {error}");
                        assert!(error.to_string().contains(&function), "{what}: {error}");
                    }
                }
                assert_eq!(release_deferred(), 0, "{what}");
                assert_eq!(free_bytes(&device), baseline - kept_bytes, "{what}");
            }
        }
        // All but what gives it back.
        assert!(failed >= 5 * 6, "{failed} failed");
        let image = device.reclaim(order).expect("no fault any more");
        model.check(&device, &image);
        image.free().expect("freed");
        assert_eq!(free_bytes(&device), baseline);
    });
}

#[test]
fn a_lost_device_is_told_while_taking_over() {
    on_machine(&[], || {
        let model = Model::new(&SMALL);
        let device = open(0);
        let order = keep(&fill(&device, &model, Granularity::Model));
        inject("lost:719@0");
        let error = device.reclaim(order).expect_err("lost");
        assert_eq!(error.code(), ErrorCode::DeviceLost, "{error}");
    });
}
