//! Copies on devices: hits, promotions, plans, peers, and which tier an open gets.

use crate::support::{Script, with_devices};

/// m1 = table a of 1, file b of 4, image i of 5 in two pieces; leased on the host as l1.
const ON_HOST: &str = "
    > session 1
    > open 1.1 m1
    resolve op1 m1
    > resolved op1 v1 a=1 b:4 i@5/2
    load op2 s1 a:1 v1
    load op3 s2 b:4 v1
    > loaded op2 c1
    > loaded op3 c2
    1.1 opened l1 v1 loaded [s1 s2]
";

/// The same opened on the device as l2.
const ON_BOTH: &str = "
    > open 1.2 m1 on d0
    resolve op4 m1
    > resolved op4 v1 a=1 b:4 i@5/2
    load op5 s3 i:5 v1 on d0 from [s2]
    > loaded op5 c3
    1.2 opened l2 v1 on d0 promoted [s1 s3]
";

#[track_caller]
fn script(limit: u64, budgets: &[u64], text: &str) -> Script {
    let mut script = Script::new(with_devices(limit, budgets));
    script.run(text);
    script
}

#[test]
fn a_host_hit_is_promoted_and_then_hits_on_the_device() {
    script(10, &[10], ON_HOST).run(ON_BOTH).run(
        "> open 1.3 m1 on d0
         1.3 opened l3 v1 on d0 hit [s1 s3]
         > open 1.4 m1
         1.4 opened l4 v1 hit [s1 s2]",
    );
}
