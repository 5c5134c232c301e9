use super::*;
use std::fs;

const DIGEST: &str = "00112233445566778899aabbccddeeff00112233445566778899AABBCCDDEEFF";

fn dir() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("m.safetensors");
    fs::write(&file, b"weights").unwrap();
    (dir, file)
}

fn found(file: &Path) -> Option<String> {
    let found = expected(file).unwrap()?;
    let by = found.by.file_name().unwrap().to_str().unwrap().to_owned();
    assert_eq!(hex(&found.sha256), DIGEST.to_lowercase());
    Some(by)
}

#[test]
fn each_form_of_a_line_is_read() {
    for line in [
        format!("{DIGEST}  m.safetensors"),
        format!("{DIGEST} *m.safetensors"),
        format!("{DIGEST}\tm.safetensors\r"),
        format!("{DIGEST}  ./m.safetensors"),
        format!("SHA256 (m.safetensors) = {DIGEST}"),
        format!("# signed off\n\n{DIGEST}  m.safetensors"),
    ] {
        let entries = parse(&line).unwrap();
        assert_eq!(entries.len(), 1, "{line}");
        assert_eq!(entries[0].name, Some("m.safetensors"), "{line}");
    }
    let bare = format!("{DIGEST}\n");
    assert_eq!(parse(&bare).unwrap()[0].name, None);
}

#[test]
fn what_is_no_list_is_refused_with_its_line() {
    let line = format!("{DIGEST}  a\n");
    for (text, at) in [
        (String::new(), 1),
        ("# nothing\n".to_owned(), 1),
        ("<html>".to_owned(), 1),
        (format!("{line}0123  b\n"), 2),
        (format!("{line}{}  b\n", "g".repeat(64)), 2),
        (format!("{line}SHA256 (b) {DIGEST}\n"), 2),
        (format!("{line}é{DIGEST}  b\n"), 2),
    ] {
        assert_eq!(parse(&text).unwrap_err().0, at, "{text}");
    }
}

#[test]
fn the_list_of_the_file_alone_comes_first() {
    let (dir, file) = dir();
    assert_eq!(found(&file), None);
    let other = format!("{}  other\n", "0".repeat(64));
    fs::write(dir.path().join("SHA256SUMS"), &other).unwrap();
    assert_eq!(found(&file), None, "another file is listed");
    let both = format!("{other}{DIGEST}  m.safetensors\n");
    fs::write(dir.path().join("sha256sums.txt"), both).unwrap();
    assert_eq!(found(&file).as_deref(), Some("sha256sums.txt"));
    // As `sha256sum DIR/m.safetensors` writes it, or without a name.
    for text in [format!("{DIGEST}  x/m.safetensors"), DIGEST.to_owned()] {
        fs::write(dir.path().join("m.safetensors.sha256"), text).unwrap();
        assert_eq!(found(&file).as_deref(), Some("m.safetensors.sha256"));
    }
}

#[test]
fn the_blob_of_a_hub_cache_is_called_what_it_should_be() {
    let dir = tempfile::tempdir().unwrap();
    let snapshot = dir.path().join("snapshots/1");
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(dir.path().join("blobs")).unwrap();
    let name = DIGEST.to_lowercase();
    for (link, blob, expected) in [
        ("m.safetensors", name.as_str(), Some(name.as_str())),
        // A small file is called by its hash in git.
        ("small", &name[..40], None),
    ] {
        fs::write(dir.path().join("blobs").join(blob), b"x").unwrap();
        let target = Path::new("../../blobs").join(blob);
        std::os::unix::fs::symlink(target, snapshot.join(link)).unwrap();
        assert_eq!(found(&snapshot.join(link)).as_deref(), expected);
    }
}

#[test]
fn a_list_that_cannot_be_read_is_an_error_and_blocks_nobody() {
    let (dir, file) = dir();
    let list = dir.path().join("SHA256SUMS");
    fs::write(&list, [0xff, 0xfe]).unwrap();
    assert_eq!(
        expected(&file).unwrap_err().code(),
        ErrorCode::ManifestMalformed
    );
    let line = format!("{DIGEST}  m.safetensors\n");
    fs::write(&list, line.repeat(LIST_BYTES_MAX / line.len() + 1)).unwrap();
    let huge = expected(&file).unwrap_err();
    assert!(matches!(huge, ManifestError::TooLong { .. }), "{huge}");
    fs::remove_file(&list).unwrap();
    let (fifo, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU);
    rustix::fs::mknodat(rustix::fs::CWD, &list, fifo, mode, 0).unwrap();
    let fifo = expected(&file).unwrap_err();
    assert!(matches!(fifo, ManifestError::Unreadable { .. }), "{fifo}");
    fs::remove_file(&list).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &list).unwrap();
    assert!(expected(&file).is_err(), "it leads outside");
}
