//! A guest of a few dozen bytes, to prove that a VMM runs guests here: it prints to the serial port and
//! then ticks or faults. It needs no disk, no driver and no toolchain.
//!
//! Its code means the same in 32-bit and in 64-bit mode, so one file boots by PVH (QEMU, newer
//! Firecracker: 32-bit, by the note) and by the 64-bit entry of Linux (older Firecracker).

use std::{fs, io, path::Path};

/// What the guest prints first.
pub const BANNER: &str = "holdfast tiny guest\n";
/// Where it is loaded and entered: 16 MiB, where Linux is.
const BASE: u64 = 0x100_0000;
/// Where it writes to its memory: another page at each tick, and then again.
const WRITTEN: u32 = 0x200_0000;
const PAGE: u32 = 4096;
const PAGES: u32 = 16;
/// I/O port of the first serial port.
const SERIAL: u32 = 0x3f8;
/// Counts of the time stamp counter between two ticks: some hundredths of a second, however fast the
/// guest's instructions are run.
const TICK: u32 = 1 << 26;

/// What the guest does after its banner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// Prints a dot and writes to its memory now and then, for ever.
    Tick,
    /// Prints as fast as it can, for ever.
    Flood,
    /// Faults so that its processor resets, as after a panic.
    Fault,
}

/// The guest's kernel as an ELF file.
pub fn kernel(then: Then) -> Vec<u8> {
    let code = code(then);
    // ELF header, two program headers, note, code.
    let note_at = 64_u64 + 2 * 56;
    let note = [
        &4_u32.to_le_bytes()[..],  // length of the name
        &8_u32.to_le_bytes()[..],  // length of the content
        &18_u32.to_le_bytes()[..], // XEN_ELFNOTE_PHYS32_ENTRY
        b"Xen\0",
        &BASE.to_le_bytes()[..],
    ]
    .concat();
    let code_at = note_at + note.len() as u64;

    let mut elf = Vec::new();
    elf.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    half(&mut elf, &[2, 62]); // executable, x86-64
    elf.extend_from_slice(&1_u32.to_le_bytes());
    long(&mut elf, &[BASE, 64, 0]); // entry, program headers, no sections
    elf.extend_from_slice(&0_u32.to_le_bytes());
    half(&mut elf, &[64, 56, 2, 64, 0, 0]);
    program_header(&mut elf, 1, 5, code_at, BASE, code.len() as u64); // PT_LOAD, readable, executable
    program_header(&mut elf, 4, 4, note_at, 0, note.len() as u64); // PT_NOTE, readable
    elf.extend_from_slice(&note);
    elf.extend_from_slice(&code);
    elf
}

/// Makes an image directory with this guest as its kernel and nothing on its disk.
pub fn image(dir: &Path, then: Then) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::create_dir_all(dir)?;
    let parts: [(&str, &[u8]); 4] = [
        ("manifest.json", b"{}"),
        ("vmlinux", &kernel(then)),
        ("initramfs.img", &[0; 512]),
        ("rootfs.img", &[0; 4096]),
    ];
    for (name, content) in parts {
        fs::write(dir.join(name), content)?;
        fs::set_permissions(dir.join(name), fs::Permissions::from_mode(0o644))?;
    }
    Ok(())
}

fn code(then: Then) -> Vec<u8> {
    let mut code = vec![0xba]; // mov edx, SERIAL
    code.extend_from_slice(&SERIAL.to_le_bytes());
    let print = |code: &mut Vec<u8>, byte: u8| code.extend_from_slice(&[0xb0, byte, 0xee]); // mov al, byte; out dx, al
    for byte in BANNER.bytes() {
        print(&mut code, byte);
    }
    match then {
        Then::Fault => code.extend_from_slice(&[0x0f, 0x0b]), // ud2, without a handler
        Then::Flood => {
            let begin = code.len();
            print(&mut code, b'.');
            jump_back(&mut code, 0xeb, begin); // jmp
        }
        Then::Tick => {
            code.push(0xbf); // mov edi, WRITTEN
            code.extend_from_slice(&WRITTEN.to_le_bytes());
            let begin = code.len();
            code.extend_from_slice(&[0xff, 0x07, 0x81, 0xc7]); // inc dword [edi]; add edi,
            code.extend_from_slice(&PAGE.to_le_bytes());
            code.extend_from_slice(&[0x81, 0xe7]); // and edi,
            code.extend_from_slice(&(WRITTEN | ((PAGES - 1) * PAGE)).to_le_bytes());
            code.extend_from_slice(&[0x0f, 0x31, 0x89, 0xc1]); // rdtsc; mov ecx, eax
            let wait = code.len();
            code.extend_from_slice(&[0x0f, 0x31, 0x29, 0xc8, 0x3d]); // rdtsc; sub eax, ecx; cmp eax,
            code.extend_from_slice(&TICK.to_le_bytes());
            jump_back(&mut code, 0x72, wait); // jb
            code.push(0xba); // mov edx, SERIAL: rdtsc left something else there
            code.extend_from_slice(&SERIAL.to_le_bytes());
            print(&mut code, b'.');
            jump_back(&mut code, 0xeb, begin); // jmp
        }
    }
    code
}

/// A short jump, whose distance is counted from the end of its two bytes.
fn jump_back(code: &mut Vec<u8>, opcode: u8, to: usize) {
    let back = (code.len() + 2 - to) as u8;
    code.extend_from_slice(&[opcode, back.wrapping_neg()]);
}

fn half(elf: &mut Vec<u8>, values: &[u16]) {
    elf.extend(values.iter().flat_map(|value| value.to_le_bytes()));
}

fn long(elf: &mut Vec<u8>, values: &[u64]) {
    elf.extend(values.iter().flat_map(|value| value.to_le_bytes()));
}

fn program_header(
    elf: &mut Vec<u8>,
    kind: u32,
    flags: u32,
    offset: u64,
    address: u64,
    length: u64,
) {
    elf.extend(kind.to_le_bytes());
    elf.extend(flags.to_le_bytes());
    long(elf, &[offset, address, address, length, length, 4]);
}
