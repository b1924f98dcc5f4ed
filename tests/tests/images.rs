//! qemu-img and nbdcopy copy an image into the tap and out of a restore: the digests are equal.

use std::path::Path;

use farside_tests::{Site, run, tool};

const BYTES: u64 = 64 << 20;

fn digest(path: &Path) -> blake3::Hash {
    blake3::hash(&std::fs::read(path).expect("a file"))
}

/// Half text-like, a quarter noise, a quarter holes.
fn image(path: &Path) {
    let mut bytes = vec![0; BYTES as usize];
    for (i, chunk) in bytes.chunks_mut(64 << 10).enumerate() {
        match i % 4 {
            0 | 1 => chunk.iter_mut().enumerate().for_each(|(j, b)| *b = b"the quick brown fox "[(i + j) % 20]),
            2 => {
                let mut rng = farside_tests::verify::Rng(i as u64);
                chunk.chunks_mut(8).for_each(|c| c.copy_from_slice(&rng.draw().to_le_bytes()));
            }
            _ => {}
        }
    }
    std::fs::write(path, bytes).expect("written");
}

#[test]
fn images_go_in_and_come_out_the_same() {
    let site = Site::with_volume(BYTES, "200ms", 8);
    let input = site.path("input.img");
    image(&input);
    let uri = format!("nbd+unix:///?socket={}", site.tap("data").display());

    run(tool("nbdcopy").args(["--flush", "--destination-is-zero"]).arg(&input).arg(&uri));
    site.wait_quiet();
    let restored = site.path("restored-1.img");
    site.restore("data", "latest", &restored);
    assert_eq!(digest(&input), digest(&restored), "nbdcopy in, restore out");
    let read_back = site.path("read-back.img");
    run(tool("nbdcopy").arg(&uri).arg(&read_back));
    assert_eq!(digest(&input), digest(&read_back), "nbdcopy in, nbdcopy out");

    // Another image, through qemu: rotated by one chunk.
    let mut bytes = std::fs::read(&input).expect("a file");
    bytes.rotate_left(64 << 10);
    std::fs::write(&input, bytes).expect("written");
    run(tool("qemu-img").args(["convert", "-n", "-f", "raw", "-O", "raw"]).arg(&input).arg(&uri));
    site.wait_quiet();
    let restored = site.path("restored-2.img");
    site.restore("data", "latest", &restored);
    assert_eq!(digest(&input), digest(&restored), "qemu-img in, restore out");
    run(tool("qemu-img").args(["compare", "-f", "raw", "-F", "raw"]).arg(&restored).arg(&uri));
}
