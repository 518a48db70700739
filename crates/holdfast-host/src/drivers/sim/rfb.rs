//! A desktop of one colour: as much of RFB 3.8 (RFC 6143) as a viewer needs to show it.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Dark blue, in the pixel format that is announced.
const PIXEL: [u8; 4] = [0x60, 0x30, 0x10, 0];
/// 32 bits a pixel, depth 24, little endian, true colour, eight bits each at 16, 8 and 0.
const FORMAT: [u8; 16] = [32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0];
const NAME: &[u8] = b"Simulated desktop";

/// Serves one viewer until it leaves.
pub(super) async fn serve(
    mut io: impl AsyncRead + AsyncWrite + Unpin,
    width: u16,
    height: u16,
) -> io::Result<()> {
    io.write_all(b"RFB 003.008\n").await?;
    skip(&mut io, 12).await?;
    io.write_all(&[1, 1]).await?;
    if io.read_u8().await? != 1 {
        return Err(io::ErrorKind::InvalidData.into());
    }
    io.write_all(&[0; 4]).await?;
    io.read_u8().await?;
    io.write_u16(width).await?;
    io.write_u16(height).await?;
    io.write_all(&FORMAT).await?;
    io.write_u32(NAME.len() as u32).await?;
    io.write_all(NAME).await?;
    let row = PIXEL.repeat(usize::from(width));
    loop {
        match io.read_u8().await? {
            0 => skip(&mut io, 19).await?,
            2 => {
                io.read_u8().await?;
                let encodings = u64::from(io.read_u16().await?);
                skip(&mut io, encodings * 4).await?;
            }
            3 => {
                let incremental = io.read_u8().await? != 0;
                skip(&mut io, 8).await?;
                // Nothing ever changes, so there is nothing to say to an incremental request.
                if !incremental {
                    io.write_all(&[0, 0, 0, 1, 0, 0, 0, 0]).await?;
                    io.write_u16(width).await?;
                    io.write_u16(height).await?;
                    io.write_u32(0).await?;
                    for _ in 0..height {
                        io.write_all(&row).await?;
                    }
                    io.flush().await?;
                }
            }
            4 => skip(&mut io, 7).await?,
            5 => skip(&mut io, 5).await?,
            6 => {
                skip(&mut io, 3).await?;
                // The length is negative in the extended form.
                let length = io.read_i32().await?.unsigned_abs();
                skip(&mut io, u64::from(length)).await?;
            }
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

async fn skip(io: &mut (impl AsyncRead + Unpin), bytes: u64) -> io::Result<()> {
    let skipped = tokio::io::copy(&mut io.take(bytes), &mut tokio::io::sink()).await?;
    if skipped < bytes { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
}
