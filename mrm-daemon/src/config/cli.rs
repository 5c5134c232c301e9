//! The command line of `mrmd`.

use super::setting::{Key, SETTINGS};
use clap::{Arg, ArgAction, ArgMatches, Args, Command, CommandFactory, FromArgMatches, Parser};
use std::ffi::OsString;
use std::path::PathBuf;

/// Keeps the weights of neural networks in memory and lends them, read-only, to the processes of
/// this node.
///
/// Every setting is a flag, an environment variable and a key of the configuration file; a flag
/// is stronger than a variable, and a variable than the file. Models and catalogues are taken as
/// a whole from the strongest of the three that names any.
#[derive(Debug, Clone, Default, Parser)]
#[command(
    name = "mrmd",
    version,
    after_help = "Exit status: 0 stopped as asked, 1 failure, 2 bad configuration, 3 another \
                  daemon has the runtime directory.\n\nSIGTERM drains and exits, SIGHUP reads \
                  models and catalogues again."
)]
pub struct Cli {
    /// Configuration file [env: MRM_CONFIG] [default: /etc/mrm/mrm.toml if it exists]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print the effective configuration, with where each value is from, and exit
    #[arg(long)]
    pub check: bool,
    /// Print the manual page and exit
    #[arg(long, conflicts_with_all = ["check", "completions"])]
    pub man: bool,
    /// Print completions for a shell and exit
    #[arg(long, value_name = "SHELL", conflicts_with = "check")]
    pub completions: Option<clap_complete::Shell>,
    /// Take the place of the daemon that serves in the runtime directory: it hands its memory and its
    /// sockets over and ends at once, and clients go on with this one
    #[arg(long, conflicts_with_all = ["check", "man", "completions", "replay"])]
    pub takeover: bool,
    /// Run a journal (of `mrm events --export`, or left by an abort) through a fresh decider, say what
    /// it came to, and exit: with 1 if a rule was broken or a decision was another
    #[arg(long, value_name = "FILE", conflicts_with_all = ["check", "man", "completions"])]
    pub replay: Option<PathBuf>,
    /// Print what a replay came to as JSON
    #[arg(long, requires = "replay")]
    pub json: bool,
    /// Register a file or directory under a name; may be repeated [env: MRM_MODELS=A=/P:B=/Q]
    #[arg(long = "model", value_name = "NAME=PATH")]
    pub models: Vec<String>,
    /// Register what is under a directory; may be repeated [env: MRM_CATALOGUES=/A:/B]
    #[arg(long = "catalogue", value_name = "ROOT")]
    pub catalogues: Vec<String>,
    #[command(flatten)]
    settings: SettingFlags,
}

/// A flag for each row of [`SETTINGS`].
#[derive(Debug, Clone, Default)]
struct SettingFlags(Vec<(Key, String)>);

impl Cli {
    /// Parses arguments, the program's name first.
    ///
    /// # Errors
    /// Clap's own, which also carries `--help` and `--version`; its `exit()` prints it.
    pub fn from_args<A>(args: impl IntoIterator<Item = A>) -> Result<Self, clap::Error>
    where
        A: Into<OsString> + Clone,
    {
        Self::try_parse_from(args)
    }

    /// The command's description, for the manual and for completions.
    #[must_use]
    pub fn description() -> Command {
        Self::command()
    }

    pub(super) fn flag(&self, key: Key) -> Option<&str> {
        let set = self.settings.0.iter().find(|(set, _)| *set == key);
        set.map(|(_, text)| text.as_str())
    }
}

impl Args for SettingFlags {
    fn augment_args(command: Command) -> Command {
        command
            .next_help_heading("Settings")
            .args(SETTINGS.iter().map(|row| {
                Arg::new(row.path)
                    .long(row.flag)
                    .value_name(row.value_name())
                    .help(row.help)
                    .action(ArgAction::Set)
                    .allow_hyphen_values(true)
            }))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for SettingFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = Self::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        let given = |row: &super::setting::Setting| {
            matches
                .get_one::<String>(row.path)
                .map(|text| (row.key, text.clone()))
        };
        self.0 = SETTINGS.iter().filter_map(given).collect();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_well_formed() {
        Cli::description().debug_assert();
    }

    #[test]
    fn flags_are_read_and_repeats_of_one_setting_are_refused() {
        let cli = Cli::from_args([
            "mrmd",
            "--load-threads=4",
            "--model",
            "a=/a",
            "--model=b=/b",
        ]);
        let cli = cli.unwrap();
        assert_eq!(cli.flag(Key::LoadThreads), Some("4"));
        assert_eq!(cli.flag(Key::LoadForeignThreads), None);
        assert_eq!(cli.models, ["a=/a", "b=/b"]);
        assert!(Cli::from_args(["mrmd", "--drain-ms=1", "--drain-ms=2"]).is_err());
        assert!(Cli::from_args(["mrmd", "--colour=red"]).is_err());
    }
}
