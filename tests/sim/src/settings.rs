//! The shape of one run, drawn from its seed. Small, so that everything gets in the way of
//! everything else.

use crate::random::Random;

/// A page: what charges are rounded to.
pub(crate) const PAGE_BYTES: u64 = 4096;
/// How long a session may stall.
pub(crate) const STALL_US: u64 = 400_000;
/// From connect to a whole hello.
pub(crate) const HELLO_US: u64 = 300_000;
/// How often those who asked hear how far their load is.
pub(crate) const PROGRESS_EVERY_US: u64 = 100_000;
/// How often devices are looked at.
pub(crate) const HEALTH_EVERY_US: u64 = 150_000;
/// How long a drained daemon waits for its leases.
pub(crate) const DRAIN_US: u64 = 300_000;
/// The longest wait that a client asks for.
pub(crate) const WAIT_MS_MAX: u64 = 1500;
/// Once faults stop, everything is at rest within this time: the longest wait, the slowest load, a
/// stall, and the leases that are released late.
pub(crate) const REST_US: u64 = 30_000_000;

/// What is drawn once.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) clients: usize,
    /// How many users they are of, one after the other.
    pub(crate) uids: u32,
    /// Those of them who share no copies on devices.
    pub(crate) private_uids: Vec<u32>,
    pub(crate) models: usize,
    /// Different contents of files; few, so that files share them.
    pub(crate) contents: u64,
    pub(crate) devices: Vec<DeviceSettings>,
    pub(crate) host_budget: u64,
    pub(crate) segments_max: u64,
    pub(crate) waiting_max: usize,
    pub(crate) leases_max: usize,
    pub(crate) revalidate_ms: u64,
    pub(crate) wait_ms_default: u64,
    /// Whether models are loaded that are likely to be used soon.
    pub(crate) prefetch: bool,
    pub(crate) sessions_max: usize,
    pub(crate) files_waiting_max: usize,
    /// Bytes that a socket holds.
    pub(crate) socket_bytes: usize,
    /// Most allocations that travel with one frame.
    pub(crate) handed_max: usize,
    /// How long faults go on.
    pub(crate) faulty_us: u64,
    /// Between two acts of a client.
    pub(crate) pause_us: u64,
}

/// One device.
#[derive(Debug, Clone)]
pub(crate) struct DeviceSettings {
    /// What models may take.
    pub(crate) budget: u64,
    /// What there is.
    pub(crate) capacity: u64,
    /// Devices whose memory it can copy from.
    pub(crate) peers: Vec<u16>,
}

impl Settings {
    /// Whose a client is.
    pub(crate) fn uid_of(&self, client: usize) -> u32 {
        u32::try_from(client).unwrap_or(0) % self.uids
    }

    pub(crate) fn draw(random: &mut Random) -> Self {
        let devices = u16::try_from(random.below(4).min(2)).unwrap_or(0);
        let device = |own: u16, random: &mut Random| {
            let budget = random.between(4, 24) * PAGE_BYTES;
            let others = (0..devices).filter(|other| *other != own);
            DeviceSettings {
                budget,
                capacity: budget + random.between(0, 6) * PAGE_BYTES,
                peers: others.filter(|_| random.coin()).collect(),
            }
        };
        let uids = u32::try_from(random.between(1, 3)).unwrap_or(1);
        Self {
            uids,
            private_uids: (0..uids).filter(|_| random.below(3) == 0).collect(),
            clients: random.index(9) + 2,
            models: random.index(7) + 3,
            contents: random.between(4, 12),
            devices: (0..devices).map(|own| device(own, random)).collect(),
            host_budget: random.between(10, 60) * PAGE_BYTES,
            segments_max: random.between(8, 40),
            waiting_max: random.index(40) + 4,
            leases_max: random.index(6) + 2,
            revalidate_ms: *random.pick(&[0, 5, 50, 1000]).unwrap_or(&0),
            wait_ms_default: random.between(1, WAIT_MS_MAX),
            prefetch: random.coin(),
            sessions_max: random.index(10) + 4,
            files_waiting_max: random.index(40) + 6,
            socket_bytes: random.index(4000) + 40,
            handed_max: random.index(3) + 1,
            faulty_us: random.between(300, 1500) * 1000,
            pause_us: random.between(2, 30) * 1000,
        }
    }
}
