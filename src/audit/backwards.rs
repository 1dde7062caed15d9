use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::Path;

use super::directory::open_regular;
use super::lines::{LINE_BYTES_MAX, Line};

/// The lines of a file from its end to its start.
pub(super) struct LinesBackwards {
    file: File,
    /// Where the part that is not read yet ends.
    place: u64,
    /// What was read, and not handed out: it begins at `place`, and ends where a line does.
    rest: Vec<u8>,
}

impl LinesBackwards {
    /// How much is read at once.
    const STEP: u64 = 1 << 16;

    /// The whole lines before `end`, or before the end of the file. What comes after the last newline is passed over.
    pub(super) fn open(path: &Path, end: Option<u64>) -> io::Result<Self> {
        let file = open_regular(path, OpenOptions::new().read(true))?;
        let len = file.metadata()?.len();
        let mut lines = Self { file, place: end.unwrap_or(len).min(len), rest: Vec::new() };
        while !lines.rest.contains(&b'\n') && lines.read_more()? {
            if !lines.rest.contains(&b'\n') {
                lines.within_bounds()?;
            }
        }
        if end.is_some() && lines.rest.last() != Some(&b'\n') {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no line ends there"));
        }
        let end = lines.rest.iter().rposition(|octet| *octet == b'\n').map_or(0, |at| at + 1);
        lines.rest.truncate(end);
        Ok(lines)
    }

    /// The line before.
    pub(super) fn next(&mut self) -> io::Result<Option<Line>> {
        loop {
            // The newline of the line itself is the last octet.
            let inner = self.rest.len().saturating_sub(1);
            let start = self.rest[..inner].iter().rposition(|octet| *octet == b'\n').map(|at| at + 1);
            let start = start.or((self.place == 0 && !self.rest.is_empty()).then_some(0));
            if let Some(start) = start {
                let octets = self.rest[start..inner].to_vec();
                self.rest.truncate(start);
                return Ok(Some(Line { place: self.place + start as u64, octets, whole: true }));
            }
            self.within_bounds()?;
            if !self.read_more()? {
                return Ok(None);
            }
        }
    }

    /// Called where what was read has no line's start in it.
    fn within_bounds(&self) -> io::Result<()> {
        if self.rest.len() as u64 <= LINE_BYTES_MAX + Self::STEP {
            return Ok(());
        }
        let text = format!("a line of more than {LINE_BYTES_MAX} octets at {}", self.place);
        Err(io::Error::new(io::ErrorKind::InvalidData, text))
    }

    fn read_more(&mut self) -> io::Result<bool> {
        let step = self.place.min(Self::STEP);
        if step == 0 {
            return Ok(false);
        }
        self.place -= step;
        let mut octets = vec![0; usize::try_from(step).expect("a step fits the memory")];
        self.file.seek(SeekFrom::Start(self.place))?;
        self.file.read_exact(&mut octets)?;
        octets.append(&mut self.rest);
        self.rest = octets;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::super::lines::Lines;
    use super::*;

    #[test]
    fn lines_are_the_same_from_both_ends() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let long = "x".repeat(150_000);
        for text in ["", "\n", "a\n", "a", "a\n\nb\nc", &format!("a\n{long}\nb\n{long}\n"), &format!("{long}\n{long}")]
        {
            std::fs::write(file.path(), text).unwrap();
            let mut lines = Lines::open(file.path()).unwrap();
            let mut forwards = Vec::new();
            while let Some(line) = lines.next().unwrap() {
                forwards.push(line);
            }
            let said = |line: &Line| String::from_utf8(line.octets.clone()).unwrap();
            assert_eq!(forwards.iter().map(said).collect::<Vec<_>>(), text.lines().collect::<Vec<_>>());
            assert!(forwards.iter().rev().skip(1).all(|line| line.whole));
            forwards.retain(|line| line.whole);
            let mut lines = LinesBackwards::open(file.path(), None).unwrap();
            while let Some(line) = lines.next().unwrap() {
                assert_eq!(Some(line), forwards.pop());
            }
            assert_eq!(forwards, []);
        }
    }
}
