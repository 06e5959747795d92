//! A virtual machine with Debian's kernel, emulated, and a shell on its serial line. Its root is an archive that is
//! made here of this machine's own programs and the libraries they ask for.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::Duration,
};

use causeway::cli::demo::network::{Network, Process};

use crate::{find, netns_common::causeway};

/// What runs in the machine.
const PROGRAMS: &[&str] = &["dash", "ip", "ping", "kmod", "mount", "stty", "cat", "sleep"];
/// What is needed of the kernel's package, by folder: loaded when asked for.
const MODULES: &[&str] = &[
    "crypto",
    "arch/x86/crypto",
    "lib",
    "net/ipv4",
    "net/ipv6",
    "net/xfrm",
    "net/core",
    "drivers/virtio",
    "drivers/net",
];
/// How long the machine may take for anything. It is emulated, maybe on a busy machine.
const PATIENCE: Duration = Duration::from_secs(300);

/// Makes the terminal a plain pair of pipes, and then does what is said there, line by line.
const INIT: &str = "#!/bin/sh
export PATH=/bin:/sbin HOME=/ LC_ALL=C
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
exec </dev/ttyS0 >/dev/ttyS0 2>&1
stty raw -echo
for module in virtio_pci virtio_net esp4 esp6 xfrm_user seqiv gcm; do modprobe $module; done
echo :READY
while read -r line; do eval \"$line\"; echo \":$?\"; done
";

/// The kernel that `scripts/test` unpacks: its folder.
pub fn kernel() -> Option<PathBuf> {
    let unpacked = causeway().parent()?.parent()?.join("peer-kernel");
    unpacked.join("lib/modules").is_dir().then_some(unpacked)
}

/// A machine that runs.
pub struct Vm {
    input: ChildStdin,
    lines: Receiver<String>,
    _process: Process,
    _files: tempfile::TempDir,
}

impl Vm {
    /// Starts a machine whose network device is a TAP named `tap` in a namespace.
    pub fn start(network: &Network, namespace: &str, tap: &str) -> Self {
        let kernel = kernel().unwrap();
        let files = tempfile::tempdir().unwrap();
        let archive = files.path().join("root.cpio");
        fs::write(&archive, root(&kernel, files.path())).unwrap();
        let image = fs::read_dir(kernel.join("boot")).unwrap().map(|entry| entry.unwrap().path());
        let image = image.into_iter().find(|path| path.to_string_lossy().contains("vmlinuz")).unwrap();
        let device = "virtio-net-pci,netdev=n,csum=off,gso=off,guest_csum=off,guest_tso4=off,guest_tso6=off,\
                      guest_ecn=off,guest_ufo=off,mrg_rxbuf=off,ctrl_vlan=off,romfile=,mac=02:00:00:00:00:99";
        let mut command = network.command(causeway(), namespace, true);
        command
            .args(["qemu-system-x86_64", "-accel", "tcg", "-M", "q35", "-cpu", "max", "-m", "512"])
            .args(["-nodefaults", "-nographic", "-no-reboot", "-serial", "stdio", "-serial"])
            .arg(format!("file:{}", files.path().join("console").display()))
            .arg("-netdev")
            .arg(format!("tap,id=n,ifname={tap},script=no,downscript=no,vnet_hdr=off"))
            .args(["-device", device, "-append", "console=ttyS1 quiet panic=-1 rdinit=/init", "-kernel"])
            .arg(image)
            .arg("-initrd")
            .arg(archive)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut process = Process::start(&mut command).unwrap();
        let input = process.child().stdin.take().unwrap();
        let output = BufReader::new(process.child().stdout.take().unwrap());
        let (sender, lines) = channel();
        // Ends with the machine.
        thread::spawn(move || {
            for line in output.split(b'\n').map_while(Result::ok) {
                let _ = sender.send(String::from_utf8_lossy(&line).trim_end().to_string());
            }
        });
        let vm = Self { input, lines, _process: process, _files: files };
        // The firmware may have left something of its own on the line before.
        while !vm.next().ends_with(":READY") {}
        vm
    }

    fn next(&self) -> String {
        self.lines.recv_timeout(PATIENCE).unwrap_or_else(|error| {
            let console = fs::read_to_string(self._files.path().join("console")).unwrap_or_default();
            panic!("the virtual machine does not answer: {error}\n{console}")
        })
    }

    /// Runs a line of shell, and returns whether it succeeded and what it printed.
    pub fn run(&mut self, line: &str) -> (bool, String) {
        assert!(!line.contains('\n'));
        writeln!(self.input, "{line}").unwrap();
        let mut text = String::new();
        loop {
            let line = self.next();
            match line.strip_prefix(':') {
                Some(code) => return (code == "0", text),
                None => text += &(line + "\n"),
            }
        }
    }

    /// Runs a line of shell that must succeed.
    #[track_caller]
    pub fn ok(&mut self, line: &str) -> String {
        let (good, text) = self.run(line);
        assert!(good, "{line}: {text}");
        text
    }
}

/// The archive that the kernel unpacks for its root (see the kernel's `initramfs buffer format`).
fn root(kernel: &Path, work: &Path) -> Vec<u8> {
    let mut archive = Archive::default();
    for folder in ["proc", "sys", "dev", "tmp", "run", "root"] {
        archive.folder(Path::new(folder));
    }
    archive.file(Path::new("init"), INIT.as_bytes(), 0o755);
    archive.file(Path::new("bin/causeway"), &fs::read(causeway()).unwrap(), 0o755);
    let mut libraries = libraries(causeway());
    for program in PROGRAMS {
        let path = find(program).unwrap_or_else(|| panic!("{program} is missing"));
        let inside = Path::new("bin").join(if *program == "dash" { "sh" } else { program });
        archive.file(&inside, &fs::read(&path).unwrap(), 0o755);
        libraries.extend(self::libraries(&path));
    }
    // It does what its name says, and the kernel looks for it in this place.
    archive.file(Path::new("sbin/modprobe"), &fs::read(find("kmod").unwrap()).unwrap(), 0o755);
    for library in libraries {
        archive.file(library.strip_prefix("/").unwrap(), &fs::read(&library).unwrap(), 0o755);
    }
    modules(kernel, work, &mut archive);
    archive.end()
}

/// The shared libraries that a program is linked with.
fn libraries(program: &Path) -> BTreeSet<PathBuf> {
    let output = Command::new("ldd").arg(program).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect()
}

/// The modules, with what tells which needs which.
fn modules(kernel: &Path, work: &Path, archive: &mut Archive) {
    let all = fs::read_dir(kernel.join("lib/modules")).unwrap().next().unwrap().unwrap();
    let release = all.file_name();
    let inside = Path::new("lib/modules").join(&release);
    let staged = work.join("modules").join(&inside);
    for folder in MODULES {
        let folder = Path::new("kernel").join(folder);
        fs::create_dir_all(staged.join(&folder)).unwrap();
        for entry in fs::read_dir(all.path().join(&folder)).into_iter().flatten() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_file() {
                fs::copy(entry.path(), staged.join(&folder).join(entry.file_name())).unwrap();
            }
        }
    }
    for list in ["modules.order", "modules.builtin", "modules.builtin.modinfo"] {
        let _ = fs::copy(all.path().join(list), staged.join(list));
    }
    let mut index = Command::new(find("depmod").unwrap());
    assert!(index.arg("-b").arg(work.join("modules")).arg(&release).status().unwrap().success());
    let mut folders = vec![staged.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let place = inside.join(path.strip_prefix(&staged).unwrap());
            archive.file(&place, &fs::read(&path).unwrap(), 0o644);
        }
    }
}

/// A cpio archive of the "newc" kind.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    folders: BTreeSet<PathBuf>,
    entries: u32,
}

impl Archive {
    fn folder(&mut self, path: &Path) {
        if path.as_os_str().is_empty() || !self.folders.insert(path.into()) {
            return;
        }
        self.folder(path.parent().unwrap());
        self.entry(path, &[], 0o40_755);
    }

    fn file(&mut self, path: &Path, content: &[u8], mode: u32) {
        self.folder(path.parent().unwrap());
        self.entry(path, content, 0o100_000 | mode);
    }

    fn entry(&mut self, path: &Path, content: &[u8], mode: u32) {
        let name = path.to_str().unwrap();
        self.entries += 1;
        // Number, mode, owner, group, links, time, size, device and what it stands for, length of the name, sum.
        let fields =
            [self.entries, mode, 0, 0, 1, 0, content.len() as u32, 0, 0, 0, 0, name.len() as u32 + 1, 0];
        self.bytes.extend_from_slice(b"070701");
        fields.iter().for_each(|field| write!(self.bytes, "{field:08x}").unwrap());
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn end(mut self) -> Vec<u8> {
        self.entry(Path::new("TRAILER!!!"), &[], 0);
        self.bytes
    }
}
