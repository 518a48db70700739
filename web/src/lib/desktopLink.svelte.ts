/**
 * The desktop: noVNC, which knows one connection only, inside a link that never gives up.
 *
 * When a connection ends its last picture stays: it is copied to a canvas of the page's own, which
 * is shown until the next connection has painted something.
 */

import type RFB from '@novnc/novnc';
import { streams } from './api';
import { KEYS, chord, keysymOf, type Key } from './keys';
import { LinkRunner, type Wire } from './linkRunner.svelte';
import { prefs, type Quality } from './prefs.svelte';

/** JPEG quality and compression level, 0 to 9 each. */
const QUALITIES: Record<Quality, [quality: number, compression: number]> = {
  low: [2, 7],
  balanced: [6, 2],
  high: [9, 1],
};
/** A new connection that painted nothing by then is shown all the same. */
const FIRST_FRAME_MS = 4_000;

export class DesktopLink {
  readonly runner: LinkRunner;
  /** The present connection has painted something. */
  live = $state(false);
  /** The picture shown is the last one of a connection that ended. */
  frozen = $state(false);
  /** Keys go to the machine. */
  captured = $state(false);
  viewOnly = $state(false);
  /** What the machine's clipboard holds, as far as it told. */
  clipboard = $state('');
  /** The machine's clipboard changed and this computer's could not be set. */
  clipboardNew = $state(false);
  /** When the other side last sent something, in ms. */
  heardAt = 0;

  readonly #id: string;
  #target: HTMLElement | null = null;
  #snapshot: HTMLCanvasElement | null = null;
  #rfb: RFB | null = null;
  #canvas: HTMLCanvasElement | null = null;
  #wantsFocus = false;
  readonly #held = new Set<Key>();

  constructor(id: string) {
    this.#id = id;
    this.runner = new LinkRunner((wire) => this.#connect(wire));
  }

  /** Tells where to draw: `target` for connections, `snapshot` for the last picture. */
  place(target: HTMLElement, snapshot: HTMLCanvasElement): () => void {
    this.#target = target;
    this.#snapshot = snapshot;
    return () => {
      this.runner.stop();
      this.#target = null;
      this.#snapshot = null;
    };
  }

  /** Applies what the person chose; reads the choices, so that an effect follows them. */
  applyPrefs(): void {
    const [quality, compression] = QUALITIES[prefs.quality];
    const { scaling } = prefs;
    const rfb = this.#rfb;
    if (rfb === null) return;
    rfb.qualityLevel = quality;
    rfb.compressionLevel = compression;
    rfb.scaleViewport = scaling !== 'native';
    rfb.resizeSession = scaling === 'resize';
    rfb.viewOnly = this.viewOnly;
  }

  focus(): void {
    this.#wantsFocus = true;
    if (this.live) this.#rfb?.focus({ preventScroll: true });
  }

  /** Gives the keyboard back to the page: every key is let go in the machine. */
  release(): void {
    this.#wantsFocus = false;
    // noVNC lets its keys go when the window loses the focus, and has no other way to ask for it.
    window.dispatchEvent(new Event('blur'));
    this.#rfb?.blur();
  }

  /** Presses keys together and lets them go. */
  press(...keys: Key[]): void {
    for (const [key, down] of chord(keys)) this.#rfb?.sendKey(key.keysym, key.code, down);
    for (const key of [...this.#held]) this.hold(key, false);
  }

  /** Keeps a key down until the next press, or lets it go. */
  hold(key: Key, down: boolean): void {
    if (down) this.#held.add(key);
    else this.#held.delete(key);
    this.#rfb?.sendKey(key.keysym, key.code, down);
  }

  /** Types text as keys, for on-screen keyboards. */
  type(text: string): void {
    for (const character of text) {
      const keysym = keysymOf(character);
      if (keysym !== null) this.#rfb?.sendKey(keysym, null);
    }
  }

  /** Puts text into the machine's clipboard. */
  sendClipboard(text: string): void {
    this.clipboard = text;
    this.clipboardNew = false;
    this.#rfb?.clipboardPasteFrom(text);
  }

  /** Takes this computer's clipboard to the machine and presses the keys that paste it there. */
  async pasteFromHere(isTerminal: boolean, controlIsDown: () => boolean): Promise<void> {
    try {
      const text = await navigator.clipboard.readText();
      if (text) this.sendClipboard(text);
    } catch {
      // Not allowed: the machine's own clipboard is pasted.
    }
    const keys = isTerminal ? [KEYS.shift, KEYS.capitalV] : [KEYS.v];
    this.press(...(controlIsDown() ? keys : [KEYS.control, ...keys]));
  }

  #connect(wire: Wire): () => void {
    let socket: WebSocket | null = null;
    let over = false;
    const finish = () => {
      over = true;
      this.#freeze();
      const rfb = this.#rfb;
      this.#rfb = null;
      rfb?.disconnect();
      socket?.close();
    };
    const fail = (code: number, reason: string) => {
      if (over) return;
      finish();
      wire.closed(code, reason);
    };
    const begin = async () => {
      const { default: Rfb } = await import('@novnc/novnc');
      const target = this.#target;
      if (over || target === null) return;
      socket = new WebSocket(streams.desktop(this.#id), ['binary']);
      socket.addEventListener('message', () => (this.heardAt = Date.now()));
      // Before noVNC's own handler: it removes the picture.
      socket.addEventListener('close', (event) => fail(event.code, event.reason));
      const rfb = new Rfb(target, socket, { shared: true });
      rfb.background = 'transparent';
      rfb.addEventListener('connect', () => {
        this.heardAt = Date.now();
        this.applyPrefs();
        wire.opened();
        void this.#firstFrame(rfb);
      });
      rfb.addEventListener('disconnect', () => fail(1006, 'the desktop closed the connection'));
      rfb.addEventListener('securityfailure', (event) =>
        fail(4502, event.detail.reason ?? 'the desktop refused the connection'),
      );
      rfb.addEventListener('credentialsrequired', () =>
        fail(4502, 'the desktop asks for a password'),
      );
      rfb.addEventListener('clipboard', (event) => void this.#copied(event.detail.text));
      this.#rfb = rfb;
      this.#canvas = target.querySelector('canvas');
      this.applyPrefs();
    };
    begin().catch((error: unknown) => fail(1006, error instanceof Error ? error.message : ''));
    return () => {
      if (!over) finish();
    };
  }

  async #firstFrame(rfb: RFB): Promise<void> {
    const deadline = Date.now() + FIRST_FRAME_MS;
    while (this.#rfb === rfb && Date.now() < deadline) {
      if (this.#canvas && hasPicture(this.#canvas)) break;
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    if (this.#rfb !== rfb) return;
    this.live = true;
    this.frozen = false;
    const nothingElse = document.activeElement === document.body;
    if (this.#wantsFocus && nothingElse) rfb.focus({ preventScroll: true });
  }

  #freeze(): void {
    const canvas = this.#canvas;
    const snapshot = this.#snapshot;
    // A connection that painted nothing must not replace the picture of the one before.
    if (this.live && canvas && snapshot && canvas.width > 0 && canvas.height > 0) {
      snapshot.width = canvas.width;
      snapshot.height = canvas.height;
      snapshot.getContext('2d')?.drawImage(canvas, 0, 0);
      const screen = canvas.parentElement;
      const isScrolled = screen !== null && screen.scrollWidth > screen.clientWidth + 1;
      snapshot.style.objectPosition = isScrolled
        ? `${-screen.scrollLeft}px ${-screen.scrollTop}px`
        : '';
      this.frozen = true;
    }
    this.#wantsFocus ||= this.captured;
    this.captured = false;
    this.live = false;
    this.#held.clear();
  }

  async #copied(text: string): Promise<void> {
    if (text === this.clipboard) return;
    this.clipboard = text;
    this.clipboardNew = true;
    if (!prefs.copyOut || !document.hasFocus()) return;
    try {
      await navigator.clipboard.writeText(text);
      this.clipboardNew = false;
    } catch {
      // Not allowed: the clipboard's panel offers the text instead.
    }
  }
}

/** Whether anything was painted: an unpainted canvas is transparent. */
function hasPicture(canvas: HTMLCanvasElement): boolean {
  if (canvas.width === 0 || canvas.height === 0) return false;
  const probe = document.createElement('canvas');
  probe.width = 8;
  probe.height = 8;
  const context = probe.getContext('2d', { willReadFrequently: true });
  if (!context) return true;
  context.drawImage(canvas, 0, 0, 8, 8);
  return context.getImageData(0, 0, 8, 8).data.some((value, i) => i % 4 === 3 && value > 0);
}
