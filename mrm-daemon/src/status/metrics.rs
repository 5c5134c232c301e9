//! Counters and histograms of the daemon, in the Prometheus text format.
//!
//! The decider counts into pre-resolved atomics; the status server's thread renders.
//!
//! ```
//! use mrm_daemon::status::metrics::{Metrics, OpenOutcome};
//! let metrics = Metrics::new()?;
//! metrics.open(OpenOutcome::Hit, 12);
//! assert_eq!(metrics.counters().hits_total, 1);
//! # Ok::<(), mrm_daemon::status::metrics::MetricsError>(())
//! ```

mod device;

use super::view::{CountersView, DaemonState, StatusView};
use crate::transfer::ReadWay;
use device::{DeviceCounters, DeviceGauges};
use prometheus::core::Collector;
use prometheus::{
    Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};
use std::sync::Arc;

/// Upper bounds of the buckets for opens, in seconds: 1, 2, 5 per decade from 1 us to 100 s.
const OPEN_BUCKETS_S: [f64; 25] = [
    1e-6, 2e-6, 5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1,
    0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0,
];
/// Upper bounds of the buckets for loads, in seconds.
const LOAD_BUCKETS_S: [f64; 16] = [
    1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 100.0, 300.0,
];

/// Upper bounds of the buckets for actual over predicted.
const PREDICTION_BUCKETS: [f64; 11] = [0.1, 0.2, 0.5, 0.8, 0.9, 1.1, 1.25, 1.5, 2.0, 5.0, 10.0];

/// How an open ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenOutcome {
    /// Granted; everything was resident.
    Hit,
    /// Granted, after a load that it started.
    Loaded,
    /// Granted, after a load that another started.
    Joined,
    /// Granted, after a copy to a device from memory; nothing was read.
    Promoted,
    /// Refused or failed.
    Refused,
}

/// A metric that cannot be made: two of one name, or a bad name.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up the metrics: {0}")]
pub struct MetricsError(#[from] prometheus::Error);

/// Everything that is measured. A clone counts into the same place.
#[derive(Debug, Clone)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Registry,
    hit: Opens,
    loaded: Opens,
    joined: Opens,
    promoted: Opens,
    refused: Opens,
    loads: IntCounter,
    load_failures: IntCounter,
    loaded_bytes: IntCounter,
    load_seconds: Histogram,
    load_ways: IntCounterVec,
    load_prediction: Histogram,
    load_first_seconds: Histogram,
    evictions: IntCounter,
    evicted_bytes: IntCounter,
    checks: Checks,
    sessions_opened: IntCounter,
    protocol_errors: IntCounter,
    prefetches: IntCounterVec,
    log_lines_dropped: IntCounter,
    devices: DeviceCounters,
    gauges: Gauges,
}

#[derive(Debug)]
struct Opens {
    count: IntCounter,
    seconds: Histogram,
}

#[derive(Debug)]
struct Checks {
    segments: IntCounter,
    bytes: IntCounter,
    damaged: IntCounter,
}

/// Set from one [`StatusView`] at each scrape.
#[derive(Debug)]
struct Gauges {
    build_info: IntGaugeVec,
    uptime: Gauge,
    ready: IntGauge,
    limit: IntGauge,
    charged: IntGauge,
    freeing: IntGauge,
    resident: IntGauge,
    huge: IntGauge,
    stock: IntGauge,
    segments: IntGauge,
    sessions: IntGauge,
    leases: IntGauge,
    waiting: IntGauge,
    loading: IntGauge,
    degraded: IntGaugeVec,
    devices: DeviceGauges,
}

impl Metrics {
    /// All at zero.
    ///
    /// # Errors
    /// Only if this file names a metric badly, which its tests exclude.
    pub fn new() -> Result<Self, MetricsError> {
        let registry = Registry::new();
        let r = &registry;
        let count = add(
            r,
            IntCounterVec::new(
                opts("opens_total", "Opens answered, by outcome."),
                &["outcome"],
            )?,
        )?;
        let options = HistogramOpts::new(
            "mrm_open_duration_seconds",
            "From the receipt of an open to its answer, by outcome.",
        );
        let seconds = add(
            r,
            HistogramVec::new(options.buckets(OPEN_BUCKETS_S.to_vec()), &["outcome"])?,
        )?;
        let opens = |label: &str| -> Result<Opens, prometheus::Error> {
            Ok(Opens {
                count: count.get_metric_with_label_values(&[label])?,
                seconds: seconds.get_metric_with_label_values(&[label])?,
            })
        };
        let load = HistogramOpts::new(
            "mrm_load_duration_seconds",
            "From the start of a segment's load to its seal.",
        );
        Ok(Self(Arc::new(Inner {
            hit: opens("hit")?,
            loaded: opens("loaded")?,
            joined: opens("joined")?,
            promoted: opens("promoted")?,
            refused: opens("refused")?,
            loads: counter(r, "loads_total", "Segments loaded.")?,
            load_failures: counter(r, "load_failures_total", "Segments whose load failed.")?,
            loaded_bytes: counter(r, "loaded_bytes_total", "Bytes read into segments.")?,
            load_seconds: add(
                r,
                Histogram::with_opts(load.buckets(LOAD_BUCKETS_S.to_vec()))?,
            )?,
            load_ways: load_ways(r)?,
            load_prediction: load_prediction(r)?,
            load_first_seconds: load_first(r)?,
            evictions: counter(r, "evictions_total", "Segments evicted.")?,
            evicted_bytes: counter(
                r,
                "evicted_bytes_total",
                "Bytes evicted, as they were charged.",
            )?,
            checks: Checks::new(r)?,
            sessions_opened: counter(r, "sessions_opened_total", "Sessions accepted.")?,
            protocol_errors: counter(
                r,
                "protocol_errors_total",
                "Sessions ended because they broke the protocol.",
            )?,
            log_lines_dropped: counter(
                r,
                "log_lines_dropped_total",
                "Log lines that could not be written in time.",
            )?,
            prefetches: prefetches(r)?,
            devices: DeviceCounters::new(r)?,
            gauges: Gauges::new(r)?,
            registry,
        })))
    }

    /// An open was answered, `took_us` after it was received.
    pub fn open(&self, outcome: OpenOutcome, took_us: u64) {
        let opens = match outcome {
            OpenOutcome::Hit => &self.0.hit,
            OpenOutcome::Loaded => &self.0.loaded,
            OpenOutcome::Joined => &self.0.joined,
            OpenOutcome::Promoted => &self.0.promoted,
            OpenOutcome::Refused => &self.0.refused,
        };
        opens.count.inc();
        opens.seconds.observe(seconds(took_us));
    }

    /// A segment was loaded.
    pub fn load_done(&self, bytes: u64, took_us: u64) {
        self.0.loads.inc();
        self.0.loaded_bytes.inc_by(bytes);
        self.0.load_seconds.observe(seconds(took_us));
    }

    /// A file was read that way.
    pub fn load_way(&self, way: ReadWay) {
        self.0.load_ways.with_label_values(&[way.as_str()]).inc();
    }

    /// The load of a file took so long, and had been predicted to take so long.
    pub fn load_predicted(&self, predicted_us: u64, took_us: u64) {
        let ratio = seconds(took_us) / seconds(predicted_us.max(1));
        self.0.load_prediction.observe(ratio);
    }

    /// The first piece of a large file was in place so long after its load was asked for.
    pub fn load_first(&self, took: std::time::Duration) {
        self.0.load_first_seconds.observe(took.as_secs_f64());
    }

    /// A segment's load failed.
    pub fn load_failed(&self) {
        self.0.load_failures.inc();
    }

    /// A segment was evicted, which had been charged so much.
    pub fn evicted(&self, charged_bytes: u64) {
        self.0.evictions.inc();
        self.0.evicted_bytes.inc_by(charged_bytes);
    }

    /// A segment was compared with its digest, for which so many bytes were read.
    pub fn checked(&self, bytes: u64) {
        self.0.checks.segments.inc();
        self.0.checks.bytes.inc_by(bytes);
    }

    /// A segment was found not to hold what was loaded. Besides [`checked`](Self::checked).
    pub fn damaged(&self) {
        self.0.checks.damaged.inc();
    }

    /// Segments and bytes that were compared with their digests, and how many segments were damaged.
    #[must_use]
    pub fn checks(&self) -> (u64, u64, u64) {
        let checks = &self.0.checks;
        let (bytes, damaged) = (checks.bytes.get(), checks.damaged.get());
        (checks.segments.get(), bytes, damaged)
    }

    /// So many bytes of a model were copied to a device, named by its UUID as everywhere below.
    pub fn device_fill_done(&self, uuid: &str, bytes: u64, took_us: u64) {
        self.0.devices.fill_done(uuid, bytes, took_us);
    }

    /// A copy to a device failed.
    pub fn device_fill_failed(&self, uuid: &str) {
        self.0
            .devices
            .fill_failures
            .with_label_values(&[uuid])
            .inc();
    }

    /// An open was granted after a copy to the device from memory. Besides [`open`](Self::open).
    pub fn device_promoted(&self, uuid: &str) {
        self.0.devices.promotions.with_label_values(&[uuid]).inc();
    }

    /// A model was dropped from a device, which had been charged so much.
    pub fn device_evicted(&self, uuid: &str, charged_bytes: u64) {
        self.0.devices.evicted(uuid, charged_bytes);
    }

    /// A lease was taken away because its device was lost.
    pub fn device_lease_revoked(&self, uuid: &str) {
        let revoked = &self.0.devices.revoked_leases;
        revoked.with_label_values(&[uuid]).inc();
    }

    /// A model is loaded before it is asked for, or it turned out whether it is used: `started`,
    /// `used` or `wasted`.
    pub fn prefetch(&self, outcome: &'static str) {
        self.0.prefetches.with_label_values(&[outcome]).inc();
    }

    /// A session was accepted.
    pub fn session_opened(&self) {
        self.0.sessions_opened.inc();
    }

    /// A session was ended because it broke the protocol.
    pub fn protocol_error(&self) {
        self.0.protocol_errors.inc();
    }

    /// So many log lines were dropped.
    pub fn log_lines_dropped(&self, lines: u64) {
        self.0.log_lines_dropped.inc_by(lines);
    }

    /// The counters as `/v1/status` shows them: the same atomics, so that the two cannot differ.
    #[must_use]
    pub fn counters(&self) -> CountersView {
        let m = &self.0;
        let (hits, misses) = (m.hit.count.get(), m.loaded.count.get());
        let (joined, refusals) = (m.joined.count.get(), m.refused.count.get());
        let promoted = m.promoted.count.get();
        CountersView {
            opens_total: hits + misses + joined + promoted + refusals,
            hits_total: hits,
            misses_total: misses,
            joined_total: joined,
            promoted_total: promoted,
            loads_total: m.loads.get(),
            load_failures_total: m.load_failures.get(),
            evictions_total: m.evictions.get(),
            refusals_total: refusals,
            loaded_bytes_total: m.loaded_bytes.get(),
            sessions_total: m.sessions_opened.get(),
            protocol_errors_total: m.protocol_errors.get(),
        }
    }

    /// Everything as Prometheus text, format 0.0.4. The gauges are those of `status`.
    ///
    /// # Errors
    /// Only if a metric is inconsistent, which the tests exclude.
    pub fn render(&self, status: &StatusView) -> Result<String, MetricsError> {
        self.0.gauges.set(status);
        let gauges = &self.0.gauges.devices;
        gauges.set(&status.devices, &self.0.devices);
        Ok(TextEncoder::new().encode_to_string(&self.0.registry.gather())?)
    }
}

impl Checks {
    fn new(r: &Registry) -> Result<Self, prometheus::Error> {
        let damaged = "Segments that did not hold what was loaded any more.";
        Ok(Self {
            segments: counter(r, "checked_total", "Segments compared with their digest.")?,
            bytes: counter(r, "checked_bytes_total", "Bytes of these that were read.")?,
            damaged: counter(r, "damaged_total", damaged)?,
        })
    }
}

impl Gauges {
    fn new(r: &Registry) -> Result<Self, prometheus::Error> {
        let build = opts("build_info", "Always 1; the label says which version runs.");
        let degraded = opts(
            "degraded_path",
            "1 for each path that is degraded; see /v1/status.",
        );
        let uptime = opts("uptime_seconds", "Since the daemon started.");
        Ok(Self {
            build_info: add(r, IntGaugeVec::new(build, &["version"])?)?,
            degraded: add(r, IntGaugeVec::new(degraded, &["id"])?)?,
            uptime: add(r, Gauge::with_opts(uptime)?)?,
            ready: gauge(
                r,
                "ready",
                "1 while the daemon serves, 0 while it starts or drains.",
            )?,
            limit: gauge(r, "host_limit_bytes", "The budget for host memory.")?,
            charged: gauge(
                r,
                "host_charged_bytes",
                "Charged for what is loading or resident.",
            )?,
            freeing: gauge(
                r,
                "host_freeing_bytes",
                "Still charged for what is being dropped.",
            )?,
            resident: gauge(r, "host_resident_bytes", "Charged for what is resident.")?,
            huge: gauge(r, "host_huge_bytes", "Resident in huge pages.")?,
            stock: gauge(
                r,
                "host_stock_bytes",
                "Memory made ready for loads to come, beside what is charged.",
            )?,
            segments: gauge(r, "host_segments", "Resident segments.")?,
            sessions: gauge(r, "sessions", "Connected sessions.")?,
            leases: gauge(r, "leases", "Leases held, over all sessions.")?,
            waiting: gauge(r, "waiting_opens", "Opens that wait for room.")?,
            loading: gauge(r, "loading_segments", "Segments being loaded.")?,
            devices: DeviceGauges::new(r)?,
        })
    }

    fn set(&self, status: &StatusView) {
        let daemon = &status.daemon;
        self.build_info.reset();
        self.build_info.with_label_values(&[&daemon.version]).set(1);
        self.degraded.reset();
        for path in &status.degraded {
            self.degraded.with_label_values(&[&path.id]).set(1);
        }
        self.uptime.set(daemon.uptime_s);
        self.ready
            .set(i64::from(daemon.state == DaemonState::Serving));
        let host = &status.host;
        for (gauge, value) in [
            (&self.limit, host.limit_bytes),
            (&self.charged, host.charged_bytes),
            (&self.freeing, host.freeing_bytes),
            (&self.resident, host.resident_bytes),
            (&self.huge, host.huge_bytes),
            (&self.stock, host.stock_bytes),
            (&self.segments, host.segments),
            (&self.sessions, status.sessions),
            (&self.leases, status.leases),
            (&self.waiting, status.waiting),
            (&self.loading, status.loading),
        ] {
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "exact below 285 years")]
const fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

fn load_ways(r: &Registry) -> Result<IntCounterVec, prometheus::Error> {
    let help = "Files loaded, by how they were read.";
    let ways = add(
        r,
        IntCounterVec::new(opts("load_ways_total", help), &["way"])?,
    )?;
    for way in ReadWay::ALL {
        ways.get_metric_with_label_values(&[way.as_str()])?;
    }
    Ok(ways)
}

fn load_first(registry: &Registry) -> Result<Histogram, prometheus::Error> {
    let opts = HistogramOpts::new(
        "mrm_load_first_seconds",
        "From the start of a large segment's load to its first piece in place.",
    );
    add(
        registry,
        Histogram::with_opts(opts.buckets(LOAD_BUCKETS_S.to_vec()))?,
    )
}

fn load_prediction(r: &Registry) -> Result<Histogram, prometheus::Error> {
    let options = HistogramOpts::new(
        "mrm_load_prediction_ratio",
        "What a file's load took, over what it was predicted to take when it was asked for.",
    );
    add(
        r,
        Histogram::with_opts(options.buckets(PREDICTION_BUCKETS.to_vec()))?,
    )
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(format!("mrm_{name}"), help)
}

fn prefetches(r: &Registry) -> Result<IntCounterVec, prometheus::Error> {
    let help = "Models loaded before they were asked for, and what became of that.";
    let outcomes = IntCounterVec::new(opts("prefetches_total", help), &["outcome"])?;
    add(r, outcomes)
}

fn counter(r: &Registry, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
    add(r, IntCounter::with_opts(opts(name, help))?)
}

fn gauge(r: &Registry, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
    add(r, IntGauge::with_opts(opts(name, help))?)
}

fn add<C: Collector + Clone + 'static>(r: &Registry, metric: C) -> Result<C, prometheus::Error> {
    r.register(Box::new(metric.clone()))?;
    Ok(metric)
}
