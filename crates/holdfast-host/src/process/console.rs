//! What a guest's console tells of its end, in one line. The whole of it is kept elsewhere.

/// How the guest's own program begins what it says.
const AGENT: &str = "holdfast: the guest cannot start: ";
/// How the kernel begins its last words; below them it prints registers.
const PANIC: &str = "Kernel panic - not syncing: ";
/// Longest line that is repeated.
const LONGEST: usize = 300;

/// The line that says why: the agent's own words, else the kernel's, else whatever came last.
pub(super) fn telling(console: &str) -> Option<String> {
    let lines: Vec<&str> = console.lines().map(without_time).filter(|l| !l.is_empty()).collect();
    let said = |words: &str| {
        let mut last = lines.iter().rev();
        last.find_map(|line| line.split_once(words).map(|(_, why)| why.to_owned()))
    };
    let line = said(AGENT)
        .or_else(|| said(PANIC).map(|why| format!("kernel panic: {why}")))
        .or_else(|| lines.last().map(ToString::to_string))?;
    Some(line.chars().take(LONGEST).collect())
}

/// A line of the kernel's log without its time, such as `[   32.477913] `.
fn without_time(line: &str) -> &str {
    let line = line.trim();
    match line.strip_prefix('[').and_then(|rest| rest.split_once("] ")) {
        Some((time, rest)) if time.trim().parse::<f64>().is_ok() => rest.trim(),
        _ => line,
    }
}

#[cfg(test)]
mod tests {
    use super::telling;

    #[test]
    fn registers_are_not_what_it_says() {
        let panic = "[    0.43] PCI: Fatal: No config space access function found\r\n\
            holdfast: the guest cannot start: no disk with the label `hf-root` after 30 s\r\n\
            [   32.477913] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100\r\n\
            [   32.482098] R10: 18d0b667c530ad14\r\n[   32.484207] Rebooting in 1 seconds..";
        assert_eq!(telling(panic).as_deref(), Some("no disk with the label `hf-root` after 30 s"));
        let later = panic.split_once("\r\n[   32.47").map(|(_, rest)| rest);
        assert_eq!(
            later.and_then(telling).as_deref(),
            Some("kernel panic: Attempted to kill init! exitcode=0x00000100")
        );
    }

    #[test]
    fn the_last_line_is_better_than_none() {
        assert_eq!(telling("holdfast tiny guest\n...\n\n").as_deref(), Some("..."));
        assert_eq!(telling(" \n[ 1.5] \n"), Some("[ 1.5]".to_owned()));
        assert_eq!(telling(""), None);
        assert_eq!(telling(&"x".repeat(5_000)).map(|line| line.len()), Some(300));
    }
}
