//! The X display: whether it can be used, its size, and where windows are. Blocking; call it from a
//! blocking thread.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use holdfast_agent_api::ScreenSize;
use x11rb::{
    connection::Connection,
    protocol::{
        Event,
        randr::{self, ConnectionExt as _},
        xproto::{
            AtomEnum, ChangeWindowAttributesAux, ClientMessageEvent, ConfigureWindowAux,
            ConnectionExt as _, EventMask, StackMode, Window,
        },
    },
    rust_connection::RustConnection,
};

/// Why the display did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be reached.
    #[error("the X server cannot be reached")]
    Connect(#[from] x11rb::errors::ConnectError),
    /// The connection broke.
    #[error("the connection to the X server broke")]
    Connection(#[from] x11rb::errors::ConnectionError),
    /// It refused a request.
    #[error("the X server refused")]
    Reply(#[from] x11rb::errors::ReplyError),
    /// No id is left for a new object.
    #[error("the X server has no id left")]
    Id(#[from] x11rb::errors::ReplyOrIdError),
    /// It has no output.
    #[error("the X server has no output to set a size for")]
    NoOutput,
}

x11rb::atom_manager! {
    Atoms:
    AtomsCookie {
        _NET_SUPPORTING_WM_CHECK,
        _NET_CLIENT_LIST,
        _NET_ACTIVE_WINDOW,
        _NET_WM_STATE,
        _NET_WM_STATE_MAXIMIZED_VERT,
        _NET_WM_STATE_MAXIMIZED_HORZ,
        _NET_MOVERESIZE_WINDOW,
        WM_WINDOW_ROLE,
    }
}

/// Share of the desktop's height that is the terminal's, in percent.
const TERMINAL_PERCENT: u32 = 26;
/// How long a window that came may ask for the keyboard by itself: one that restores its pages does so again
/// seconds after it was shown.
const NEW: Duration = Duration::from_secs(10);
/// Colour of the desktop behind the windows.
const BACKGROUND: u32 = 0x0017_1c26;

/// A connection to a display.
pub struct Display {
    connection: RustConnection,
    root: Window,
    atoms: Atoms,
}

/// A window that has its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Browser,
    Terminal,
}

impl Display {
    /// Connects to `name`, such as `:1`.
    pub fn open(name: &str) -> Result<Self, Error> {
        let (connection, screen) = x11rb::connect(Some(name))?;
        let root = connection.setup().roots[screen].root;
        let atoms = Atoms::new(&connection)?.reply()?;
        Ok(Self { connection, root, atoms })
    }

    /// Whether a window manager runs.
    pub fn has_window_manager(&self) -> Result<bool, Error> {
        let property = self.atoms._NET_SUPPORTING_WM_CHECK;
        let Some(window) = self.windows(self.root, property)?.first().copied() else {
            return Ok(false);
        };
        // The property outlives a window manager that was killed; its window does not.
        Ok(self.windows(window, property).is_ok_and(|found| found.first() == Some(&window)))
    }

    /// Size of the desktop.
    pub fn size(&self) -> Result<ScreenSize, Error> {
        let geometry = self.connection.get_geometry(self.root)?.reply()?;
        Ok(ScreenSize { width: geometry.width, height: geometry.height })
    }

    /// Sets the size of the desktop.
    pub fn resize(&self, size: ScreenSize) -> Result<(), Error> {
        if self.size()? == size {
            return Ok(());
        }
        let c = &self.connection;
        let resources = c.randr_get_screen_resources(self.root)?.reply()?;
        let output = *resources.outputs.first().ok_or(Error::NoOutput)?;
        let crtc = *resources.crtcs.first().ok_or(Error::NoOutput)?;
        let known =
            resources.modes.iter().find(|m| (m.width, m.height) == (size.width, size.height));
        let mode = if let Some(mode) = known {
            mode.id
        } else {
            let name = format!("{}x{}", size.width, size.height);
            let info = randr::ModeInfo {
                width: size.width,
                height: size.height,
                dot_clock: u32::from(size.width) * u32::from(size.height) * 60,
                htotal: size.width,
                vtotal: size.height,
                name_len: name.len() as u16,
                ..randr::ModeInfo::default()
            };
            c.randr_create_mode(self.root, info, name.as_bytes())?.reply()?.mode
        };
        let outputs = c.randr_get_output_info(output, resources.config_timestamp)?.reply()?;
        if !outputs.modes.contains(&mode) {
            c.randr_add_output_mode(output, mode)?.check()?;
        }
        // No step may show more than the screen holds, so the picture is off while it changes.
        let off = |connection: &RustConnection| -> Result<(), Error> {
            connection
                .randr_set_crtc_config(crtc, 0, 0, 0, 0, 0, randr::Rotation::ROTATE0, &[])?
                .reply()?;
            Ok(())
        };
        c.grab_server()?;
        let outcome = off(c).and_then(|()| {
            // Millimetres at 96 dots an inch.
            let millimetres = |pixels: u16| u32::from(pixels) * 254 / 960;
            let (width, height) = (millimetres(size.width), millimetres(size.height));
            c.randr_set_screen_size(self.root, size.width, size.height, width, height)?.check()?;
            c.randr_set_crtc_config(crtc, 0, 0, 0, 0, mode, randr::Rotation::ROTATE0, &[output])?
                .reply()?;
            Ok(())
        });
        c.ungrab_server()?.check()?;
        outcome
    }

    /// Gives browser and terminal their places, and the desktop its colour.
    pub fn arrange(&self) -> Result<(), Error> {
        let background = ChangeWindowAttributesAux::new().background_pixel(BACKGROUND);
        self.connection.change_window_attributes(self.root, &background)?;
        self.connection.clear_area(false, self.root, 0, 0, 0, 0)?;
        for window in self.windows(self.root, self.atoms._NET_CLIENT_LIST)? {
            // A window may be gone by now.
            let _ = self.place(window);
        }
        self.connection.flush()?;
        Ok(())
    }

    fn place(&self, window: Window) -> Result<(), Error> {
        let Some(place) = self.kind(window)? else { return Ok(()) };
        let size = self.size()?;
        let (width, height) = (u32::from(size.width), u32::from(size.height));
        let terminal = height * TERMINAL_PERCENT / 100;
        let (top, height) = match place {
            Place::Browser => (0, height - terminal),
            Place::Terminal => (height - terminal, terminal),
        };
        let remove = [
            0,
            self.atoms._NET_WM_STATE_MAXIMIZED_VERT,
            self.atoms._NET_WM_STATE_MAXIMIZED_HORZ,
            2,
            0,
        ];
        self.tell(window, self.atoms._NET_WM_STATE, remove)?;
        // Gravity north-west, all four values given, on behalf of the person.
        let flags = 1 | 0xf << 8 | 2 << 12;
        self.tell(window, self.atoms._NET_MOVERESIZE_WINDOW, [flags, 0, top, width, height])
    }

    /// Brings the browser to the front and gives it the keyboard.
    pub fn raise_browser(&self) -> Result<(), Error> {
        for window in self.windows(self.root, self.atoms._NET_CLIENT_LIST)? {
            if self.kind(window)? == Some(Place::Browser) {
                self.tell(window, self.atoms._NET_ACTIVE_WINDOW, [2, 0, 0, 0, 0])?;
                let above = ConfigureWindowAux::new().stack_mode(StackMode::ABOVE);
                self.connection.configure_window(window, &above)?;
            }
        }
        self.connection.flush()?;
        Ok(())
    }

    /// Blocks; calls `changed` when the size changed or a window came. A browser that has just come takes
    /// no keys from whoever types in the terminal.
    pub fn watch(&self, mut changed: impl FnMut(&Self)) -> Result<(), Error> {
        self.connection.randr_select_input(self.root, randr::NotifyMask::SCREEN_CHANGE)?;
        let mask = ChangeWindowAttributesAux::new().event_mask(EventMask::PROPERTY_CHANGE);
        self.connection.change_window_attributes(self.root, &mask)?;
        self.connection.flush()?;
        let mut came: HashMap<Window, Instant> = HashMap::new();
        let mut active = None;
        loop {
            match self.connection.wait_for_event()? {
                Event::RandrScreenChangeNotify(_) => changed(self),
                Event::PropertyNotify(event) if event.atom == self.atoms._NET_CLIENT_LIST => {
                    let windows = self.windows(self.root, self.atoms._NET_CLIENT_LIST)?;
                    came.retain(|window, _| windows.contains(window));
                    let known = came.len();
                    for window in windows {
                        came.entry(window).or_insert_with(Instant::now);
                    }
                    if came.len() > known {
                        changed(self);
                    }
                }
                Event::PropertyNotify(event) if event.atom == self.atoms._NET_ACTIVE_WINDOW => {
                    let now = self.windows(self.root, self.atoms._NET_ACTIVE_WINDOW)?;
                    // Between two windows there may be none.
                    let Some(now) = now.first().copied().filter(|window| *window != 0) else {
                        continue;
                    };
                    let is_new = came.get(&now).is_some_and(|at| at.elapsed() < NEW);
                    if let Some(before) = active.filter(|_| is_new) {
                        // A window may be gone by now.
                        let _ = self.give_back_keyboard(before, now);
                    }
                    active = Some(now);
                }
                _ => {}
            }
        }
    }

    /// A browser `now` has the keyboard because it came a moment ago. Where the pointer is still over the
    /// terminal that had it `before`, somebody works there and gets it back. The window manager cannot tell:
    /// it knows half a second of what a person did.
    fn give_back_keyboard(&self, before: Window, now: Window) -> Result<(), Error> {
        if self.kind(now)? != Some(Place::Browser) || self.kind(before)? != Some(Place::Terminal) {
            return Ok(());
        }
        let pointer = self.connection.query_pointer(self.root)?.reply()?;
        let terminal = self.connection.get_geometry(before)?.reply()?;
        let at = self.connection.translate_coordinates(before, self.root, 0, 0)?.reply()?;
        let within = |point: i16, from: i16, length: u16| {
            (0..i32::from(length)).contains(&(i32::from(point) - i32::from(from)))
        };
        if within(pointer.root_x, at.dst_x, terminal.width)
            && within(pointer.root_y, at.dst_y, terminal.height)
        {
            self.tell(before, self.atoms._NET_ACTIVE_WINDOW, [2, 0, 0, 0, 0])?;
            self.connection.flush()?;
        }
        Ok(())
    }

    /// Whether the desktop's terminal is shown.
    pub fn shows_terminal(&self) -> Result<bool, Error> {
        for window in self.windows(self.root, self.atoms._NET_CLIENT_LIST)? {
            if self.kind(window)? == Some(Place::Terminal) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn kind(&self, window: Window) -> Result<Option<Place>, Error> {
        let text = |property: u32| -> Result<String, Error> {
            let reply = self
                .connection
                .get_property(false, window, property, AtomEnum::STRING, 0, 64)?
                .reply()?;
            Ok(String::from_utf8_lossy(&reply.value).to_ascii_lowercase())
        };
        let class = text(AtomEnum::WM_CLASS.into())?;
        if class.contains("holdfast-terminal") {
            return Ok(Some(Place::Terminal));
        }
        // Chromium's dialogs and pop-up windows keep the place that it gave them.
        let browser = class.contains("chrom") && text(self.atoms.WM_WINDOW_ROLE)? == "browser";
        Ok(browser.then_some(Place::Browser))
    }

    fn windows(&self, of: Window, property: u32) -> Result<Vec<Window>, Error> {
        let reply = self
            .connection
            .get_property(false, of, property, AtomEnum::WINDOW, 0, 1024)?
            .reply()?;
        Ok(reply.value32().map(Iterator::collect).unwrap_or_default())
    }

    fn tell(&self, window: Window, message: u32, data: [u32; 5]) -> Result<(), Error> {
        let event = ClientMessageEvent::new(32, window, message, data);
        let mask = EventMask::SUBSTRUCTURE_REDIRECT | EventMask::SUBSTRUCTURE_NOTIFY;
        self.connection.send_event(false, self.root, mask, event)?;
        Ok(())
    }
}
