//! Seeds that people can read.

use super::Seed;

fn named(seeds: &[(&str, &str)]) -> Vec<Seed> {
    let seed = |(name, text): &(&str, &str)| ((*name).to_owned(), text.as_bytes().to_vec());
    seeds.iter().map(seed).collect()
}

pub(super) fn safetensors_header() -> Vec<Seed> {
    const ONE: &str = r#"{"w":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}"#;
    let seeds: &[(&str, u32, &str)] = &[
        ("one", 2, ONE),
        ("none", 0, "{}"),
        ("padded", 2, &format!("{ONE}     ")),
        (
            "metadata-only",
            0,
            r#"{"__metadata__":{"format":"pt","a":"\u00e9"}}"#,
        ),
        (
            "several",
            36,
            r#"{"__metadata__":{"format":"pt"},
                "b":{"dtype":"F32","shape":[2,2],"data_offsets":[16,32]},
                "a":{"dtype":"BF16","shape":[8],"data_offsets":[0,16]},
                "scalar":{"dtype":"I32","shape":[],"data_offsets":[32,36]},
                "empty":{"dtype":"F64","shape":[0,9],"data_offsets":[36,36]}}"#,
        ),
        (
            "half-bytes",
            7,
            r#"{"x":{"dtype":"F4","shape":[8],"data_offsets":[0,4]},
                "y":{"dtype":"F6_E2M3","shape":[4],"data_offsets":[4,7]}}"#,
        ),
        (
            "unknown-fields",
            1,
            r#"{"w":{"dtype":"BOOL","x":[1.5e3,null,{"y":[true]}],"shape":[1],"data_offsets":[0,1]}}"#,
        ),
        // 1 << 40.
        (
            "huge",
            0x2700_0002,
            r#"{"w":{"dtype":"I8","shape":[1048576,1048576],"data_offsets":[0,1099511627776]}}"#,
        ),
        ("bad-trailing", 3, ONE),
        ("bad-short", 1, ONE),
        (
            "bad-overlap",
            3,
            r#"{"v":{"dtype":"U8","shape":[2],"data_offsets":[1,3]},
                "w":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}"#,
        ),
        (
            "bad-twice",
            2,
            r#"{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},
                "w":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#,
        ),
        (
            "bad-overflow",
            0,
            r#"{"w":{"dtype":"F64","shape":[4294967296,4294967296],"data_offsets":[0,0]}}"#,
        ),
        (
            "bad-dtype",
            1,
            r#"{"w":{"dtype":"F128","shape":[1],"data_offsets":[0,1]}}"#,
        ),
        ("bad-deep", 0, r#"{"a":[[[[[[[[[]]]]]]]]]}"#),
        ("bad-empty", 0, ""),
    ];
    let seed = |(name, data, text): &(&str, u32, &str)| {
        let input = [&data.to_le_bytes(), text.as_bytes()].concat();
        ((*name).to_owned(), input)
    };
    seeds.iter().map(seed).collect()
}

pub(super) fn safetensors_index() -> Vec<Seed> {
    named(&[
        ("one", r#"{"weight_map":{"w":"a.safetensors"}}"#),
        (
            "three",
            r#"{"metadata":{"total_size":8,"x":[1,2.5,null]},
                "weight_map":{"b.w":"model-00002-of-00002.safetensors",
                "a.w":"model-00001-of-00002.safetensors",
                "a.\u00e9\n":"model-00001-of-00002.safetensors"}}"#,
        ),
        (
            "odd-names",
            r#"{"weight_map":{"":"a","\"":".hidden","w":"a.safetensors.index.json"}}"#,
        ),
        ("bad-outside", r#"{"weight_map":{"w":"../a.safetensors"}}"#),
        ("bad-parent", r#"{"weight_map":{"w":".."}}"#),
        ("bad-twice", r#"{"weight_map":{"w":"a","w":"b"}}"#),
        (
            "bad-two-maps",
            r#"{"weight_map":{"w":"a"},"weight_map":{}}"#,
        ),
        ("bad-empty", r#"{"weight_map":{}}"#),
        ("bad-none", r#"{"metadata":{}}"#),
        ("bad-deep", r#"{"a":[[[[[[[[[]]]]]]]]]}"#),
    ])
}

const EVERY_SETTING: &str = r#"runtime_dir = "/run/mrm"
socket_mode = "0660"
socket_group = "mrm"
status_group = "990"
host_budget_bytes = "50%"
revalidate_ms = 1_000
drain_ms = 30000
log_level = "debug"
log_format = "json"

[limits]
sessions_max = 1024
sessions_per_uid_max = 256
waiting_max = 0
idle_hello_ms = 5000
open_wait_ms_default = 30000
write_stall_ms = 10000

[load]
threads = 2
foreign_threads = 256
"#;

pub(super) fn config() -> Vec<Seed> {
    named(&[
        ("empty", ""),
        ("comment", "# nothing is set\n"),
        ("every-setting", EVERY_SETTING),
        (
            "models",
            r#"host_budget_bytes = "8 GiB"
[[model]]
name = "org/bert"
path = "/models/bert"
pin = true
[[model]]
name = "caf\u00e9 \"x\""
path = '/models/c:\x'
eager = true
[[catalogue]]
root = "/srv/models/"
prefix = "hub"
[[catalogue]]
root = "/srv/./models"
"#,
        ),
        (
            "inline",
            "model = [{ name = \"a\", path = \"/a\" }]\nlimits.sessions_max = 0x10\n\
             load = { threads = 0b11 }\nsocket_mode = 0o600\n",
        ),
        (
            "environment",
            "#env MRM_HOST_BUDGET_BYTES=512MiB\n#env MRM_MODELS=a=/a:b/c=/b\n\
             #env MRM_CATALOGUES=/x:/y\n#env MRM_SOCKET_MODE=0600\n#env MRM_LOAD_THREADS=3\n\
             #env MRM_RUNTIME_DIR=/tmp/mrm\ndrain_ms = 1\n",
        ),
        ("bad-syntax", "drain_ms = \n[limits\n"),
        (
            "bad-key",
            "drain = 5\n[limits]\ndrain_ms = 5\n[extra]\nx = 1\n",
        ),
        (
            "bad-control",
            "\"\\u001b]0;owned\\u0007\" = 1\nsocket_group = \"\\u001b[2J\"\n[limits]\n\"a\\nb\" = 2\n",
        ),
        ("bad-type", "drain_ms = 1.5\nlimits = 3\nmodel = \"x\"\n"),
        ("bad-range", "[load]\nthreads = 0\nforeign_threads = 257\n"),
        ("bad-budget", "host_budget_bytes = \"1TiB\"\n"),
        ("bad-path", "runtime_dir = \"run\"\n"),
        (
            "bad-twice",
            "[[model]]\nname = \"a\"\npath = \"/a\"\n[[model]]\nname = \"a\"\npath = \"/b\"\n",
        ),
        ("bad-name", "[[model]]\nname = \"../a\"\npath = \"/a\"\n"),
        (
            "bad-environment",
            "#env MRM_HOST_BUDGET_BYTES=8 gigs\n#env MRM_MODELS=a\n",
        ),
    ])
}
