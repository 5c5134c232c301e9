//! Layers, validation and printing, end to end.

mod devices;

use super::problem::Origin;
use super::setting::{Key, Kind, SETTINGS, Setting};
use super::*;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;

const GIB: u64 = 1 << 30;
const GPU_A: &str = "GPU-5a3c1b2e-0f1d-4c9a-8a77-0123456789ab";
const GPU_B: &str = "GPU-00000000-0000-0000-0000-00000000000b";

/// One host for every test: root, 16 GiB, one group, no file unless one is written.
struct Host {
    dir: tempfile::TempDir,
    facts: Facts,
    environment: Vec<(String, OsString)>,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let gid_of = |name: &str| match name {
            "mrm" => Some(990),
            "ops" => Some(991),
            "wheel" => Some(10),
            _ => None,
        };
        let default_file = dir.path().join("mrm.toml");
        let facts = Facts {
            uid: 0,
            usable_bytes: 16 * GIB,
            gid_of,
            default_file,
        };
        Self {
            dir,
            facts,
            environment: Vec::new(),
        }
    }

    fn file(self, text: &str) -> Self {
        std::fs::write(&self.facts.default_file, text).unwrap();
        self
    }

    fn variable(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.environment.push((name.to_owned(), value.into()));
        self
    }

    fn user(mut self) -> Self {
        self.facts.uid = 1000;
        self
    }

    fn load<const N: usize>(&self, flags: [&str; N]) -> Result<Loaded, ConfigError> {
        let cli = Cli::from_args(["mrmd"].into_iter().chain(flags)).unwrap();
        let environment = |name: &str| {
            let found = self.environment.iter().find(|(set, _)| set == name);
            found.map(|(_, value)| value.clone())
        };
        load(&cli, &environment, &self.facts)
    }

    /// The report of what is wrong, with the file's directory shortened to `DIR`.
    fn report<const N: usize>(&self, flags: [&str; N]) -> String {
        let dir = self.dir.path().display().to_string();
        self.load(flags)
            .unwrap_err()
            .to_string()
            .replace(&dir, "DIR")
    }
}

/// Three values of the kind, as they are written in a flag or a variable; and as they are printed.
fn samples(kind: Kind) -> [(String, String); 3] {
    let quoted = |text: &str| (text.to_owned(), format!("{text:?}"));
    match kind {
        Kind::Path => ["/run/a", "/run/b", "/run/c"].map(quoted),
        Kind::Mode => ["0600", "0660", "0606"].map(quoted),
        Kind::Group => ["mrm", "ops", "wheel"].map(quoted),
        Kind::Size => [("1GiB", GIB), ("25%", 4 * GIB), ("2147483648", 2 * GIB)]
            .map(|(text, bytes)| (text.to_owned(), bytes.to_string())),
        Kind::DeviceSize => [("1GiB", "1GiB"), ("25%", "25%"), ("2147483648", "2GiB")]
            .map(|(text, printed)| (text.to_owned(), format!("{printed:?}"))),
        Kind::Bytes { .. } => [("1MiB", 1 << 20), ("2MiB", 2 << 20), ("4194304", 4 << 20)]
            .map(|(text, bytes): (_, u64)| (text.to_owned(), bytes.to_string())),
        Kind::Integer { .. } => ["3", "4", "5"].map(|text| (text.to_owned(), text.to_owned())),
        Kind::Uuids => [&[GPU_A][..], &[GPU_B], &[GPU_B, GPU_A]].map(|uuids| {
            let printed: Vec<String> = uuids.iter().map(|uuid| format!("{uuid:?}")).collect();
            (uuids.join(","), format!("[{}]", printed.join(", ")))
        }),
        Kind::Uids => ["1000", "0", "1000,7"].map(|text| {
            let printed: Vec<String> = text.split(',').map(|uid| format!("{uid:?}")).collect();
            (text.to_owned(), format!("[{}]", printed.join(", ")))
        }),
        Kind::Policy => ["gc", "random,seed=7", "mix,second-use=yes"].map(quoted),
        Kind::Choice(words) => [words[0], words[1], words[0]].map(quoted),
    }
}

fn in_file(row: &Setting, (text, printed): &(String, String)) -> String {
    let (table, name) = row.table_and_name();
    let header = match table {
        "" => String::new(),
        table => format!("[{table}]\n"),
    };
    // A size is text in the file as well; all else is printed as it is written.
    let is_size = matches!(row.kind, Kind::Size | Kind::DeviceSize | Kind::Bytes { .. });
    let value = if is_size {
        format!("{text:?}")
    } else {
        printed.clone()
    };
    format!("{header}{name} = {value}\n")
}

#[track_caller]
fn assert_printed(loaded: &Loaded, row: &Setting, value: &str, origin: Origin) {
    let (table, name) = row.table_and_name();
    let text = loaded.to_toml();
    // Tables have settings of the same name.
    let in_table = text
        .lines()
        .skip_while(|line| !table.is_empty() && *line != format!("[{table}]"));
    let mut settings = in_table.filter(|line| !line.starts_with('['));
    let line = settings
        .find(|line| line.starts_with(&format!("{name} = ")))
        .unwrap();
    let expected = format!("{name} = {value}  # from {}", origin.as_str());
    assert!(line.starts_with(&expected), "{line:?} is not {expected:?}");
}

#[test]
fn a_flag_beats_a_variable_beats_the_file_for_every_setting() {
    for row in &SETTINGS {
        let [file, variable, flag] = samples(row.kind);
        let host = Host::new().file(&in_file(row, &file));
        assert_printed(&host.load([]).unwrap(), row, &file.1, Origin::File);

        let host = host.variable(row.env, &variable.0);
        let loaded = host.load([]).unwrap();
        assert_printed(&loaded, row, &variable.1, Origin::Environment);

        let loaded = host.load([&format!("--{}={}", row.flag, flag.0)]).unwrap();
        assert_printed(&loaded, row, &flag.1, Origin::Flag);
    }
}

#[test]
fn an_empty_variable_is_an_unset_one() {
    let host = Host::new().variable("MRM_DRAIN_MS", "");
    assert_eq!(host.load([]).unwrap().config.drain_ms, 30_000);
}

#[test]
fn lists_come_whole_from_their_strongest_layer() {
    let host = Host::new().file(
        "[[model]]\nname = 'f'\npath = '/f'\npin = true\n[[catalogue]]\nroot = '/fc'\nprefix = 'p'",
    );
    let names = |loaded: &Loaded| -> Vec<String> {
        let models = loaded.config.models.iter();
        models.map(|model| model.name.to_string()).collect()
    };
    let loaded = host.load([]).unwrap();
    assert_eq!(
        (names(&loaded), loaded.models),
        (vec!["f".into()], Origin::File)
    );
    assert!(loaded.config.models[0].pin && !loaded.config.models[0].eager);
    let prefix = loaded.config.catalogues[0].prefix.as_ref().unwrap();
    assert_eq!(prefix.as_str(), "p");

    let host = host
        .variable("MRM_MODELS", "a=/p:b/c=/q=r")
        .variable("MRM_CATALOGUES", "/x:/y");
    let loaded = host.load([]).unwrap();
    assert_eq!(names(&loaded), ["a", "b/c"]);
    assert_eq!(loaded.config.models[1].path, PathBuf::from("/q=r"));
    assert_eq!(loaded.config.catalogues.len(), 2);
    assert_eq!(loaded.models, Origin::Environment);

    let flags = ["--model", "z=/z", "--catalogue", "/only"];
    let loaded = host.load(flags).unwrap();
    assert_eq!(
        (names(&loaded), loaded.models),
        (vec!["z".into()], Origin::Flag)
    );
    assert_eq!(loaded.config.catalogues[0].root, PathBuf::from("/only"));
}

#[test]
fn the_runtime_directory_follows_the_user() {
    let root = Host::new().load([]).unwrap().config;
    assert_eq!(root.runtime_dir, PathBuf::from("/run/mrm"));
    assert_eq!(root.host_budget_bytes, 8 * GIB);

    let user = Host::new()
        .user()
        .variable("XDG_RUNTIME_DIR", "/run/user/7");
    let config = user.load([]).unwrap().config;
    assert_eq!(config.runtime_dir, PathBuf::from("/run/user/7/mrm"));
    assert_eq!(
        config.status_socket(),
        PathBuf::from("/run/user/7/mrm/status.sock")
    );

    assert_eq!(
        Host::new().user().report([]),
        "the configuration has 1 problem\n  default: runtime_dir: has no default for this user, \
         as XDG_RUNTIME_DIR is not set; set --runtime-dir or MRM_RUNTIME_DIR"
    );
}

#[test]
fn every_problem_of_a_file_is_reported_with_its_place_and_remedy() {
    let host = Host::new().file(
        "host_budget = \"8GiB\"
threads = 4
drain_ms = \"5000\"
  log_level = \"loud\"
socket_mode = 660
socket_group = \"nobody-here\"
revalidate_ms = 1.5
limits = 3

[load]
threads = 0
thread = 2

[[model]]
name = \"../up\"
path = \"relative\"
pin = \"yes\"

[[model]]
nam = \"x\"

[[catalogue]]
root = \"/a/\"

[[catalogue]]
root = \"/a\"
",
    );
    let at = "DIR/mrm.toml";
    let expected = [
        "1:1: host_budget: is not a setting; did you mean `host_budget_bytes`?",
        "2:1: threads: is not a setting of this table; move it to [load]",
        "3:1: drain_ms = \"5000\": is a string; give a whole number from 0 to 86400000, \
         without quotes",
        "4:3: log_level = \"loud\": not a known word; give one of error, warn, info, debug, trace",
        "5:1: socket_mode = \"660\": is a decimal number; write it in octal with quotes, \
         for example \"0660\"",
        "6:1: socket_group = \"nobody-here\": there is no such group on this host; \
         create it with `groupadd --system nobody-here`, or name another",
        "7:1: revalidate_ms: has the type float; give a string in quotes or a whole number",
        "8:1: limits: is a table; write it as [limits]",
        "11:1: load.threads = \"0\": out of range; give a whole number from 1 to 256",
        "12:1: load.thread: is not a setting; did you mean `threads`?",
        "15:1: model.name = \"../up\": a name must be a plain relative path: no empty, `.` or \
         `..` component; give a plain relative name, for example \"org/bert\"",
        "16:1: model.path = \"relative\": not an absolute path; start it with `/`",
        "17:1: model.pin: has the type string; give true or false",
        "19:1: model.name: is missing; add `name = \"...\"` below [[model]]",
        "19:1: model.path: is missing; add `path = \"...\"` below [[model]]",
        "20:1: model.nam: is not a setting; did you mean `name`?",
        "26:1: catalogue.root = \"/a\": is given twice, first at DIR/mrm.toml:23:1; \
         remove one of the two, or give them different prefixes",
    ];
    let expected: String = expected.map(|line| format!("\n  {at}:{line}")).concat();
    let report = host.report([]);
    assert_eq!(
        report,
        format!("the configuration has 17 problems{expected}")
    );
}

#[test]
fn flags_and_variables_are_named_in_their_problems() {
    let host = Host::new()
        .variable("MRM_LOAD_THREADS", "many")
        .variable("MRM_LOG_FORMAT", OsString::from_vec(vec![0xff]))
        .variable("MRM_MODELS", "a=/a:b");
    let report = host.report([
        "--host-budget-bytes=32GiB",
        "--runtime-dir=run",
        "--model=a=/a",
        "--model=a=/b",
    ]);
    for line in [
        "environment variable MRM_LOAD_THREADS: load.threads = \"many\": not a whole number in \
         range; give a whole number from 1 to 256",
        "environment variable MRM_LOG_FORMAT: log_format = \"\u{fffd}\": not UTF-8; give a value \
         in UTF-8",
        "flag --host-budget-bytes: host_budget_bytes = \"32GiB\": over the 17179869184 bytes that \
         this process may use; give less, or raise the memory limit of its cgroup",
        "flag --runtime-dir: runtime_dir = \"run\": not an absolute path; start it with `/`",
        "flag --model: model.name = \"a\": is given twice, first at flag --model; give each model \
         a name of its own",
    ] {
        assert!(report.contains(line), "{line}\nis not in\n{report}");
    }
    assert!(
        report.starts_with("the configuration has 5 problems"),
        "{report}"
    );

    let report = host.report(["--load-threads=1", "--log-format=text"]);
    assert!(
        report.contains("MRM_MODELS: model = \"b\": not NAME=PATH"),
        "{report}"
    );
}

#[test]
fn budgets_and_directories_have_bounds() {
    let report = Host::new().report(["--host-budget-bytes=1KiB"]);
    assert!(
        report.contains("too small to hold any model; give at least 64KiB"),
        "{report}"
    );
    let long = format!("--runtime-dir=/{}", "x".repeat(95));
    let report = Host::new().report([&long]);
    assert!(
        report.contains("too long for the address of a Unix socket"),
        "{report}"
    );
    assert!(report.contains("at most 95 bytes"), "{report}");
    assert!(Host::new().load([&long[..long.len() - 1]]).is_ok());
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let host = Host::new();
    let missing = host.dir.path().join("missing.toml").display().to_string();
    let report = host.report(["--config", &missing]);
    assert!(report.contains("flag --config: config = \"DIR/missing.toml\": the configuration file cannot be read: No such file"), "{report}");
    let host = host.variable("MRM_CONFIG", &missing);
    assert!(
        host.report([])
            .contains("environment variable MRM_CONFIG: config")
    );

    let report = Host::new().file("drain_ms = 1\nload = [\n").report([]);
    assert!(report.contains("DIR/mrm.toml:2:9: not TOML: "), "{report}");
    assert!(!report.contains("is a table"), "{report}");
}

/// Reads what was printed as the only layer.
fn again(loaded: &Loaded) -> Config {
    let printed = loaded.to_toml();
    Host::new()
        .file(&printed)
        .load([])
        .unwrap_or_else(|error| panic!("{error}\n{printed}"))
        .config
}

#[test]
fn what_check_prints_reads_back_as_the_same_configuration() {
    let defaults = Host::new().load([]).unwrap();
    assert_eq!(again(&defaults), defaults.config);

    let host = Host::new().variable("MRM_LOAD_THREADS", "7").file(
        "socket_group = 'mrm'
[limits]
sessions_max = 0x10
[device]
uuids = ['GPU-5a3c1b2e-0f1d-4c9a-8a77-0123456789ab']
budget_bytes = 68719476736
[device.gpu.'GPU-5A3C1B2E0F1D4C9A8A770123456789AB']
reserve_bytes = '5%'
[[model]]
name = \"a \\\"quoted\\\" näme # with = signs\"
path = '/with \\ and \" in it'
eager = true
[[model]]
name = 'b'
path = '/b'
pin = true
granularity = 'tensor'
workspace_bytes = '1536MiB'
warm_on = 'GPU-5A3C1B2E0F1D4C9A8A770123456789AB'
[[model]]
name = 'c'
path = '/c'
pin = true
[[catalogue]]
root = '/c'
[[catalogue]]
root = '/c'
prefix = 'again'
",
    );
    let loaded = host
        .load(["--socket-mode=0o640", "--host-budget-bytes", "33%"])
        .unwrap();
    assert_eq!(again(&loaded), loaded.config);
    let text = loaded.to_toml();
    for line in [
        "socket_mode = \"0640\"  # from flag",
        "socket_group = \"mrm\"  # from file",
        "# status_group is not set  # from default",
        "threads = 7  # from environment",
        "sessions_max = 16  # from file",
        "[[model]]  # from file",
        "budget_bytes = \"64GiB\"  # from file",
        "[device.gpu.\"GPU-5a3c1b2e-0f1d-4c9a-8a77-0123456789ab\"]  # from file",
        "reserve_bytes = \"5%\"",
        "granularity = \"tensor\"",
        "workspace_bytes = \"1536MiB\"",
        "warm_on = \"GPU-5a3c1b2e-0f1d-4c9a-8a77-0123456789ab\"",
        "warm_on = \"host\"",
    ] {
        assert!(text.contains(line), "{line}\nis not in\n{text}");
    }
}

#[test]
fn the_packaged_example_is_the_defaults_as_it_is_and_with_every_setting_in_force() {
    let example = include_str!("../../packaging/mrm.toml");
    let defaults = Host::new().load([]).unwrap().config;
    assert_eq!(Host::new().file(example).load([]).unwrap().config, defaults);

    // A setting is commented out by a `#` without a space.
    let in_force: Vec<&str> = example
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase()) => rest,
            _ => line,
        })
        .collect();
    let loaded = Host::new().file(&in_force.join("\n")).load([]).unwrap();
    assert_eq!(loaded.config, defaults);
    for row in &SETTINGS {
        let (_, name) = row.table_and_name();
        if row.kind == Kind::Group || ["journal.dir", "state_dir"].contains(&row.path) {
            assert!(example.contains(&format!("#     {name} = ")), "{name}");
        } else {
            assert_eq!(loaded.scalars[row.key as usize], Origin::File, "{name}");
        }
    }
}

#[test]
fn the_examples_entries_are_valid() {
    let example = include_str!("../../packaging/mrm.toml");
    let entries: Vec<&str> = example
        .lines()
        .filter_map(|line| line.strip_prefix("#     "))
        .filter(|line| !line.contains("_group") && !line.starts_with("dir = "))
        .collect();
    let config = Host::new()
        .file(&entries.join("\n"))
        .load([])
        .unwrap()
        .config;
    assert_eq!((config.models.len(), config.catalogues.len()), (1, 1));
    assert_eq!(config.models[0].granularity, Some(Granularity::Tensor));
    assert_eq!(config.models[0].workspace_bytes, 2 << 30);
    assert!(config.device.gpus[0].budget.is_some() && config.device.gpus[0].reserve.is_some());
}

#[test]
fn help_states_the_defaults_in_force() {
    let defaults = Host::new().load([]).unwrap();
    for row in &SETTINGS {
        let stated = row
            .help
            .rsplit_once("[default: ")
            .unwrap()
            .1
            .trim_end_matches(']');
        match row.kind {
            Kind::Integer { .. } => assert_printed(&defaults, row, stated, Origin::Default),
            Kind::Choice(_) | Kind::Policy | Kind::Mode => {
                assert_printed(&defaults, row, &format!("{stated:?}"), Origin::Default);
            }
            Kind::DeviceSize => {
                assert_printed(&defaults, row, &format!("{stated:?}"), Origin::Default);
            }
            Kind::Bytes { .. } if row.key == Key::LoadStockBytes => {
                assert_eq!(stated, "an eighth of the host budget");
                assert_printed(&defaults, row, &GIB.to_string(), Origin::Default);
            }
            Kind::Bytes { .. } => {
                let bytes = stated.parse::<Size>().unwrap().of(0).to_string();
                assert_printed(&defaults, row, &bytes, Origin::Default);
            }
            Kind::Size => assert_eq!(stated, "50%"),
            Kind::Path | Kind::Group | Kind::Uuids | Kind::Uids => {}
        }
    }
}

#[test]
fn embedders_defaults_are_the_loaded_defaults() {
    let loaded = Host::new().load([]).unwrap().config;
    assert_eq!(Config::with_defaults("/run/mrm".into(), 8 * GIB), loaded);
}
