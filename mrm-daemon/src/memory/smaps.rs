//! What the kernel's account of this process says of a mapping.

use std::fs::File;
use std::io::{BufRead, BufReader};

/// How much of the mapping that begins at `address` is mapped by huge pages. `None` if there is no
/// such mapping, or no account.
pub(super) fn huge_bytes(address: usize) -> Option<usize> {
    let lines = BufReader::new(File::open("/proc/self/smaps").ok()?).lines();
    parse(lines.map_while(Result::ok), address)
}

/// Whether a child made by `fork(2)` would have the mapping that begins at `address` too. `None` if
/// there is no such mapping, or no account.
#[cfg(test)]
pub(super) fn is_inherited(address: usize) -> Option<bool> {
    let text = std::fs::read_to_string("/proc/self/smaps").ok()?;
    let start = |line: &str| range(line).map(|(start, _)| start);
    let mut entry = text
        .lines()
        .skip_while(|line| start(line) != Some(address))
        .skip(1);
    let flags = entry.find_map(|line| line.strip_prefix("VmFlags:"))?;
    Some(!flags.split(' ').any(|flag| flag == "dc"))
}

/// Adds up adjacent mappings: advice splits one mapping into several.
fn parse(lines: impl Iterator<Item = String>, address: usize) -> Option<usize> {
    let mut next = address;
    let mut inside = false;
    let mut found = None;
    for line in lines {
        if let Some((start, end)) = range(&line) {
            inside = start == next;
            if inside {
                next = end;
                found = Some(found.unwrap_or(0));
            } else if found.is_some() {
                break;
            }
        } else if inside && let Some(rest) = line.strip_prefix("ShmemPmdMapped:") {
            let kib: usize = rest.trim().strip_suffix(" kB")?.parse().ok()?;
            found = found.map(|bytes| bytes + kib * 1024);
        }
    }
    found
}

/// The addresses in the first line of a mapping's entry.
fn range(line: &str) -> Option<(usize, usize)> {
    let (start, end) = line.split_once(' ')?.0.split_once('-')?;
    Some((
        usize::from_str_radix(start, 16).ok()?,
        usize::from_str_radix(end, 16).ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
7f0000000000-7f0000200000 rw-s 00000000 00:01 1 /memfd:mrm (deleted)
Rss:                2048 kB
ShmemPmdMapped:     2048 kB
VmFlags: rd wr sh mr mw me ms sd
7f0000200000-7f0000300000 rw-s 00200000 00:01 1 /memfd:mrm (deleted)
ShmemPmdMapped:        4 kB
7f0000400000-7f0000500000 rw-s 00000000 00:01 2 /memfd:other (deleted)
ShmemPmdMapped:      512 kB
";

    #[test]
    fn adjacent_entries_are_added() {
        let lines = || TEXT.lines().map(str::to_owned);
        assert_eq!(parse(lines(), 0x7f00_0000_0000), Some(2052 << 10));
        assert_eq!(parse(lines(), 0x7f00_0040_0000), Some(512 << 10));
        assert_eq!(parse(lines(), 0x1000), None);
    }
}
