//! A process for tests that look into another one's memory.

use std::{
    io::{BufRead as _, BufReader, Lines, Write as _},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

/// A Python script that tells and is told line by line.
pub(crate) struct Script {
    process: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Script {
    pub(crate) fn start(script: &str) -> Self {
        let mut process = Command::new("python3")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3");
        let input = process.stdin.take().expect("piped");
        let output = BufReader::new(process.stdout.take().expect("piped")).lines();
        Self { process, input, output }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Its next line.
    pub(crate) fn line(&mut self) -> String {
        self.output.next().expect("a line").expect("text")
    }

    pub(crate) fn tell(&mut self, line: &str) {
        writeln!(self.input, "{line}").expect("it reads");
    }

    /// Waits for its orderly end.
    pub(crate) fn end(mut self) {
        assert!(self.process.wait().expect("it ends").success());
    }
}
