/** The terminal: xterm.js on a link that never gives up. The guest keeps the shell and its scrollback. */

import { streams } from './api';
import { LinkRunner, type Wire } from './linkRunner.svelte';

/** What a terminal on the page has to offer. */
export interface Screen {
  cols: number;
  rows: number;
  /** Clears everything: the scrollback comes again. */
  reset(): void;
  write(bytes: Uint8Array): void;
}

type FromServer = { type: 'ready' } | { type: 'exit'; code: number };

export class TerminalLink {
  readonly runner: LinkRunner;
  /** Exit code of the shell, once it ended. */
  exit: number | null = $state(null);
  /** The scrollback is complete. */
  ready = $state(false);
  /** It was chosen with the mouse, so its user wants to type. */
  wantsFocus = $state(false);
  heardAt = 0;

  readonly #id: string;
  readonly #encoder = new TextEncoder();
  #screen: Screen | null = null;
  #socket: WebSocket | null = null;

  constructor(id: string) {
    this.#id = id;
    this.runner = new LinkRunner((wire) => this.#connect(wire));
  }

  place(screen: Screen): () => void {
    this.#screen = screen;
    return () => {
      this.runner.stop();
      this.#screen = null;
    };
  }

  send(text: string): void {
    this.sendBytes(this.#encoder.encode(text));
  }

  sendBytes(bytes: Uint8Array<ArrayBuffer>): void {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(bytes);
  }

  resize(cols: number, rows: number): void {
    if (this.#socket?.readyState !== WebSocket.OPEN) return;
    this.#socket.send(JSON.stringify({ type: 'resize', cols, rows }));
  }

  /** Starts a new shell after the last one ended. */
  again(): void {
    this.exit = null;
    this.runner.stop();
    this.runner.start();
  }

  #connect(wire: Wire): () => void {
    const screen = this.#screen;
    const [cols, rows] = screen ? [screen.cols, screen.rows] : [80, 24];
    const socket = new WebSocket(streams.terminal(this.#id, cols, rows));
    socket.binaryType = 'arraybuffer';
    this.#socket = socket;
    this.ready = false;
    let over = false;
    let heard = false;
    socket.addEventListener('message', (event: MessageEvent<ArrayBuffer | string>) => {
      this.heardAt = Date.now();
      if (over) return;
      if (!heard) {
        // A refused connection opens too; the first message shows that this one was not. What
        // was on the screen comes again as scrollback.
        heard = true;
        wire.opened();
        const now = this.#screen;
        now?.reset();
        if (now && (now.cols !== cols || now.rows !== rows)) this.resize(now.cols, now.rows);
      }
      if (typeof event.data !== 'string') this.#screen?.write(new Uint8Array(event.data));
      else this.#hear(JSON.parse(event.data) as FromServer);
    });
    socket.addEventListener('close', (event) => {
      if (over) return;
      over = true;
      this.#drop(socket);
      if (this.exit === null) wire.closed(event.code, event.reason);
      else this.runner.stop();
    });
    return () => {
      over = true;
      this.#drop(socket);
      socket.close();
    };
  }

  #hear(message: FromServer): void {
    if (message.type === 'ready') this.ready = true;
    else if (message.type === 'exit') this.exit = message.code;
  }

  #drop(socket: WebSocket): void {
    if (this.#socket === socket) this.#socket = null;
    this.ready = false;
  }
}
