//! A small viewer: RFB 3.8 (RFC 6143), enough to see what a desktop shows. It asks for hextile, which loses
//! nothing and, like the encodings that viewers of people ask for, sends no 4 MiB for an empty desktop.

use anyhow::{Context as _, Result, bail, ensure};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader};

const SECURITY_NONE: u8 = 1;
const RAW: i32 = 0;
const HEXTILE: i32 = 5;
const DESKTOP_SIZE: i32 = -223;
const UPDATE: u8 = 0;
const COLOUR_MAP: u8 = 1;
const BELL: u8 = 2;
const CUT_TEXT: u8 = 3;

/// Width and height of a tile of hextile.
const TILE: u16 = 16;
/// What a tile says of itself (RFC 6143, 7.7.4).
mod tile {
    pub(super) const RAW: u8 = 1;
    pub(super) const BACKGROUND: u8 = 2;
    pub(super) const FOREGROUND: u8 = 4;
    pub(super) const RECTANGLES: u8 = 8;
    pub(super) const COLOURED: u8 = 16;
}

/// A part of a picture: left, top, width and height.
type Area = (u16, u16, u16, u16);

/// A connected viewer.
pub struct Viewer<S> {
    stream: BufReader<S>,
    /// Width in pixels.
    pub width: u16,
    /// Height in pixels.
    pub height: u16,
    /// Name of the desktop.
    pub name: String,
}

/// A whole picture.
#[derive(Clone)]
pub struct Frame {
    /// Width in pixels.
    pub width: u16,
    /// Height in pixels.
    pub height: u16,
    /// Row by row, each 0x00RRGGBB.
    pub pixels: Vec<u32>,
}

impl Frame {
    /// How many different colours it has.
    pub fn colours(&self) -> usize {
        self.pixels.iter().collect::<std::collections::HashSet<_>>().len()
    }

    /// Whether it is one colour all over, like a desktop that shows nothing.
    pub fn is_blank(&self) -> bool {
        self.pixels.iter().all(|pixel| *pixel == self.pixels[0])
    }

    /// Share of the picture, 0 to 1, that has exactly this colour.
    pub fn share(&self, colour: u32) -> f64 {
        let count = self.pixels.iter().filter(|pixel| **pixel == colour).count();
        count as f64 / self.pixels.len() as f64
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Viewer<S> {
    /// Performs the handshake.
    pub async fn connect(stream: S) -> Result<Self> {
        let mut stream = BufReader::new(stream);
        let mut version = [0; 12];
        stream.read_exact(&mut version).await.context("the desktop sent no greeting")?;
        ensure!(&version == b"RFB 003.008\n", "unexpected greeting {version:?}");
        stream.write_all(&version).await?;
        let kinds = stream.read_u8().await?;
        if kinds == 0 {
            bail!("the desktop refused: {}", text(&mut stream).await?);
        }
        let mut offered = vec![0; usize::from(kinds)];
        stream.read_exact(&mut offered).await?;
        ensure!(offered.contains(&SECURITY_NONE), "security types {offered:?} are offered");
        stream.write_all(&[SECURITY_NONE]).await?;
        if stream.read_u32().await? != 0 {
            bail!("the desktop refused: {}", text(&mut stream).await?);
        }
        // Other viewers stay connected.
        stream.write_all(&[1]).await?;
        let (width, height) = (stream.read_u16().await?, stream.read_u16().await?);
        let mut format = [0; 16];
        stream.read_exact(&mut format).await?;
        let name = text(&mut stream).await?;
        let mut viewer = Self { stream, width, height, name };
        viewer.choose_format().await?;
        Ok(viewer)
    }

    /// 32 bits per pixel, little-endian, 0x00RRGGBB; hextile where it is offered.
    async fn choose_format(&mut self) -> Result<()> {
        let format = [0, 0, 0, 0, 32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0];
        self.stream.write_all(&format).await?;
        let mut encodings = vec![2, 0, 0, 3];
        for encoding in [HEXTILE, RAW, DESKTOP_SIZE] {
            encodings.extend(encoding.to_be_bytes());
        }
        self.stream.write_all(&encodings).await?;
        Ok(())
    }

    /// Types text of Latin-1; a line's end is the return key, and a tab the tab key.
    pub async fn type_text(&mut self, text: &str) -> Result<()> {
        for c in text.chars() {
            let keysym = match c {
                '\n' => 0xff0d,
                '\t' => 0xff09,
                // The keysyms of Latin-1 are its code points.
                c => u32::from(c),
            };
            self.press(keysym).await?;
        }
        Ok(())
    }

    /// Asks for the whole picture and waits until it is there.
    pub async fn frame(&mut self) -> Result<Frame> {
        self.request(false).await?;
        let mut pixels = vec![0; usize::from(self.width) * usize::from(self.height)];
        let mut missing = pixels.len();
        while missing > 0 {
            match self.stream.read_u8().await.context("the desktop went away")? {
                UPDATE => {
                    self.stream.read_u8().await?;
                    for _ in 0..self.stream.read_u16().await? {
                        if let Some((_, _, width, height)) = self.rectangle(&mut pixels).await? {
                            let drawn = usize::from(width) * usize::from(height);
                            missing = missing.saturating_sub(drawn);
                        } else {
                            // Another size: begin again.
                            pixels = vec![0; usize::from(self.width) * usize::from(self.height)];
                            missing = pixels.len();
                            self.request(false).await?;
                        }
                    }
                }
                other => self.pass_over(other).await?,
            }
        }
        Ok(Frame { width: self.width, height: self.height, pixels })
    }

    /// Waits for what changes and draws it into a picture of the same size; answers where, as left,
    /// top, width and height.
    pub async fn change(&mut self, frame: &mut Frame) -> Result<Vec<Area>> {
        ensure!((frame.width, frame.height) == (self.width, self.height), "another size");
        self.request(true).await?;
        loop {
            match self.stream.read_u8().await.context("the desktop went away")? {
                UPDATE => {
                    self.stream.read_u8().await?;
                    let mut changed = Vec::new();
                    for _ in 0..self.stream.read_u16().await? {
                        let drawn = self.rectangle(&mut frame.pixels).await?;
                        changed.push(drawn.context("the desktop has another size now")?);
                    }
                    return Ok(changed);
                }
                other => self.pass_over(other).await?,
            }
        }
    }

    /// Clicks with the left button.
    pub async fn click(&mut self, x: u16, y: u16) -> Result<()> {
        for mask in [0, 1, 0] {
            let mut event = vec![5, mask];
            event.extend(x.to_be_bytes());
            event.extend(y.to_be_bytes());
            self.stream.write_all(&event).await?;
        }
        Ok(())
    }

    async fn request(&mut self, incremental: bool) -> Result<()> {
        let mut request = vec![3, u8::from(incremental), 0, 0, 0, 0];
        request.extend(self.width.to_be_bytes());
        request.extend(self.height.to_be_bytes());
        Ok(self.stream.write_all(&request).await?)
    }

    /// A message that is no picture.
    async fn pass_over(&mut self, kind: u8) -> Result<()> {
        match kind {
            COLOUR_MAP => bail!("a colour map was sent for a true-colour format"),
            BELL => {}
            CUT_TEXT => {
                self.skip(3).await?;
                text(&mut self.stream).await?;
            }
            other => bail!("unknown message {other} from the desktop"),
        }
        Ok(())
    }

    /// Reads a rectangle: where it was drawn, or `None` when the desktop's size changed.
    async fn rectangle(&mut self, pixels: &mut [u32]) -> Result<Option<Area>> {
        let stream = &mut self.stream;
        let (x, y) = (stream.read_u16().await?, stream.read_u16().await?);
        let (width, height) = (stream.read_u16().await?, stream.read_u16().await?);
        let area = (x, y, width, height);
        let encoding = stream.read_i32().await?;
        if encoding == DESKTOP_SIZE {
            (self.width, self.height) = (width, height);
            return Ok(None);
        }
        ensure!(is_within(area, (0, 0, self.width, self.height)), "a rectangle lies outside");
        match encoding {
            RAW => self.raw(area, pixels).await?,
            HEXTILE => self.hextile(area, pixels).await?,
            other => bail!("encoding {other} was not asked for"),
        }
        Ok(Some(area))
    }

    async fn raw(&mut self, (x, y, width, height): Area, pixels: &mut [u32]) -> Result<()> {
        let mut row = vec![0; usize::from(width) * 4];
        for line in y..y + height {
            self.stream.read_exact(&mut row).await?;
            let start = usize::from(line) * usize::from(self.width) + usize::from(x);
            for (pixel, bytes) in pixels[start..].iter_mut().zip(row.chunks_exact(4)) {
                *pixel = colour([bytes[0], bytes[1], bytes[2], bytes[3]]);
            }
        }
        Ok(())
    }

    async fn hextile(&mut self, (x, y, width, height): Area, pixels: &mut [u32]) -> Result<()> {
        let (mut background, mut foreground) = (0, 0);
        for top in (y..y + height).step_by(TILE.into()) {
            for left in (x..x + width).step_by(TILE.into()) {
                let area = (left, top, TILE.min(x + width - left), TILE.min(y + height - top));
                let kind = self.stream.read_u8().await?;
                if kind & tile::RAW != 0 {
                    self.raw(area, pixels).await?;
                    continue;
                }
                if kind & tile::BACKGROUND != 0 {
                    background = self.colour().await?;
                }
                if kind & tile::FOREGROUND != 0 {
                    foreground = self.colour().await?;
                }
                self.fill(area, background, pixels);
                if kind & tile::RECTANGLES == 0 {
                    continue;
                }
                for _ in 0..self.stream.read_u8().await? {
                    if kind & tile::COLOURED != 0 {
                        foreground = self.colour().await?;
                    }
                    let [at, size] = self.stream.read_u16().await?.to_be_bytes().map(u16::from);
                    let part =
                        (left + (at >> 4), top + (at & 15), (size >> 4) + 1, (size & 15) + 1);
                    ensure!(is_within(part, area), "a part of a tile lies outside");
                    self.fill(part, foreground, pixels);
                }
            }
        }
        Ok(())
    }

    async fn colour(&mut self) -> Result<u32> {
        let mut bytes = [0; 4];
        self.stream.read_exact(&mut bytes).await?;
        Ok(colour(bytes))
    }

    fn fill(&self, (x, y, width, height): Area, colour: u32, pixels: &mut [u32]) {
        for line in y..y + height {
            let start = usize::from(line) * usize::from(self.width) + usize::from(x);
            pixels[start..start + usize::from(width)].fill(colour);
        }
    }

    /// Presses and releases a key (X11 keysym).
    pub async fn press(&mut self, key: u32) -> Result<()> {
        for down in [1, 0] {
            let mut event = vec![4, down, 0, 0];
            event.extend(key.to_be_bytes());
            self.stream.write_all(&event).await?;
        }
        Ok(())
    }

    async fn skip(&mut self, bytes: usize) -> Result<()> {
        let mut buffer = vec![0; bytes];
        self.stream.read_exact(&mut buffer).await?;
        Ok(())
    }
}

fn colour([blue, green, red, _]: [u8; 4]) -> u32 {
    u32::from_be_bytes([0, red, green, blue])
}

fn is_within((x, y, width, height): Area, (left, top, wide, high): Area) -> bool {
    let fits = |at: u16, size: u16, from: u16, room: u16| {
        at >= from && u32::from(at) + u32::from(size) <= u32::from(from) + u32::from(room)
    };
    fits(x, width, left, wide) && fits(y, height, top, high)
}

/// A text with its length before it.
async fn text(stream: &mut (impl AsyncRead + Unpin)) -> Result<String> {
    let length = stream.read_u32().await?;
    ensure!(length <= 1 << 20, "a text of {length} bytes was announced");
    let mut bytes = vec![0; length as usize];
    stream.read_exact(&mut bytes).await?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blank_and_share() {
        let mut frame = Frame { width: 2, height: 2, pixels: vec![7; 4] };
        assert!(frame.is_blank());
        frame.pixels[0] = 8;
        assert!(!frame.is_blank());
        assert_eq!(frame.colours(), 2);
        assert!((frame.share(7) - 0.75).abs() < 1e-9);
    }

    #[tokio::test]
    async fn a_frame_in_two_rectangles_after_a_resize() {
        let (near, mut far) = tokio::io::duplex(64 * 1024);
        let server = tokio::spawn(async move {
            far.write_all(b"RFB 003.008\n").await?;
            let mut greeting = [0; 12];
            far.read_exact(&mut greeting).await?;
            far.write_all(&[1, 1]).await?;
            far.read_u8().await?;
            far.write_u32(0).await?;
            far.read_u8().await?;
            far.write_u16(1).await?;
            far.write_u16(1).await?;
            far.write_all(&[0; 16]).await?;
            far.write_u32(2).await?;
            far.write_all(b"vm").await?;
            let mut setup = [0; 20 + 16 + 10];
            far.read_exact(&mut setup).await?;
            // The desktop grew to 2 x 1 in the meantime.
            far.write_all(&[0, 0, 0, 1, 0, 0, 0, 0, 0, 2, 0, 1]).await?;
            far.write_i32(DESKTOP_SIZE).await?;
            let mut request = [0; 10];
            far.read_exact(&mut request).await?;
            far.write_all(&[0, 0, 0, 2]).await?;
            for x in 0..2_u8 {
                far.write_all(&[0, x, 0, 0, 0, 1, 0, 1]).await?;
                far.write_i32(RAW).await?;
                far.write_all(&[x + 1, 0x20, 0x30, 0xff]).await?;
            }
            // What changes next, as a tile with one rectangle in it.
            let mut request = [0; 10];
            far.read_exact(&mut request).await?;
            far.write_all(&[0, 0, 0, 1, 0, 0, 0, 0, 0, 2, 0, 1]).await?;
            far.write_i32(HEXTILE).await?;
            far.write_all(&[tile::BACKGROUND | tile::RECTANGLES | tile::COLOURED]).await?;
            far.write_all(&[1, 2, 3, 0, 1, 4, 5, 6, 0, 0x10, 0x00]).await?;
            anyhow::Ok(far)
        });
        let mut viewer = Viewer::connect(near).await.expect("handshake");
        assert_eq!((viewer.name.as_str(), viewer.width), ("vm", 1));
        let mut frame = viewer.frame().await.expect("a frame");
        assert_eq!(frame.pixels, [0x0030_2001, 0x0030_2002]);
        let changed = viewer.change(&mut frame).await.expect("a change");
        assert_eq!(changed, [(0, 0, 2, 1)]);
        assert_eq!(frame.pixels, [0x0003_0201, 0x0006_0504]);
        server.await.expect("no panic").expect("no error");
    }
}
