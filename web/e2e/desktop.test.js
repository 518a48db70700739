/** What a person may do with a desktop besides typing: its size, full screen, the clipboard, dark. */

import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import {
  START_MS,
  TERMINAL_FROM,
  cleanUp,
  coloursOf,
  desktopIsLive,
  enterTerminal,
  inGuest,
  isSimulated,
  newSession,
  openBrowser,
  picture,
  settled,
  signIn,
  until,
  url,
  written,
} from './harness.js';

/** A bubble of the browser covers 2 to 5 % of it; a caret, a spinner and a hovered button far less. */
const BUBBLE = 0.015;
/** How long the browser's picture has to stay the same: a bubble comes with the first window. */
const STILL_MS = 3_000;
/** What the machine's browser shows, as it says itself. */
const TABS = `exec 3<>/dev/tcp/127.0.0.1/9222
printf 'GET /json/list HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n' >&3; timeout 2 cat <&3; true`;

describe('a desktop', { timeout: 4 * START_MS }, () => {
  let browser;
  let page;
  let id;
  let simulated;

  before(async () => {
    browser = await openBrowser({ colorScheme: 'light' });
    page = browser.page;
    await browser.context.grantPermissions(['clipboard-read', 'clipboard-write'], { origin: url });
    simulated = await isSimulated();
    await signIn(page);
    id = await newSession(page, 'First steps');
    await desktopIsLive(page);
  });

  after(async () => {
    await browser?.close();
    await cleanUp();
  });

  /** Sizes in CSS pixels of the picture and its place, and the picture's own. */
  const sizes = () =>
    page.locator('.target canvas').evaluate((canvas) => {
      const stage = canvas.closest('.stage').getBoundingClientRect();
      const shown = canvas.getBoundingClientRect();
      return {
        own: [canvas.width, canvas.height],
        shown: [Math.round(shown.width), Math.round(shown.height)],
        stage: [Math.round(stage.width), Math.round(stage.height)],
      };
    });

  /** Whether the picture fills its place in one direction, and keeps its shape. */
  const fits = ({ own, shown, stage }) =>
    shown.every((length, i) => length <= stage[i]) &&
    shown.some((length, i) => length >= stage[i] - 1) &&
    Math.abs(shown[0] / shown[1] - own[0] / own[1]) < 0.01;

  it('is fitted into the window, or shown in its actual size', async () => {
    await until(async () => fits(await sizes()), 'a picture that fits');
    const choice = page.getByLabel('Size');
    await choice.selectOption('Actual size');
    await until(async () => {
      const { own, shown } = await sizes();
      return own[0] === shown[0] && own[1] === shown[1];
    }, 'a picture in its actual size');
    const { own, stage } = await sizes();
    assert.ok(own[1] > stage[1], `${own} is not larger than its place, ${stage}`);
    await page.reload();
    await desktopIsLive(page);
    assert.equal(await choice.inputValue(), 'native', 'the choice is remembered');
    assert.deepEqual((await sizes()).shown, own);
    await choice.selectOption('Fit window');
    await until(async () => fits(await sizes()), 'a picture that fits again');
  });

  it('fills the screen, and leaves it', async () => {
    const before = await sizes();
    await page.getByRole('button', { name: 'Full screen' }).click();
    const leave = page.getByRole('button', { name: 'Leave full screen' });
    await leave.waitFor();
    assert.ok(await page.evaluate(() => document.fullscreenElement?.matches('.desktop')));
    await until(async () => {
      const now = await sizes();
      return now.stage[1] > before.stage[1] && fits(now);
    }, 'a larger picture');
    assert.equal(
      await page.locator('header').evaluate(isCovered),
      true,
      'the page is out of sight',
    );
    await leave.click();
    await page.getByRole('button', { name: 'Full screen', exact: true }).waitFor();
    await until(async () => (await sizes()).shown[1] === before.shown[1], 'the size of before');
  });

  it('takes this computer’s clipboard to the machine', async (t) => {
    if (simulated) return t.skip('simulated machines have no clipboard');
    const text = `touch ~/via-clipboard # ${process.pid} äöü €`;
    await page.evaluate((text) => navigator.clipboard.writeText(text), text);
    await enterTerminal(page);
    const before = await written(page);
    await page.keyboard.press('Control+Shift+V');
    const clipboard = async () => (await inGuest(id, 'xclip -o -selection clipboard')).output;
    await until(async () => (await clipboard()) === text, 'the text in the machine', START_MS);
    // The terminal asks for the text only when it carries the keys out.
    await until(async () => (await written(page)) > before + 500, 'its picture', START_MS);
    await page.keyboard.press('Enter');
    await until(
      async () => (await inGuest(id, 'test -e ~/via-clipboard')).code === 0,
      'the effect of the pasted command',
      START_MS,
    );

    await page.getByRole('button', { name: 'Clipboard' }).click();
    await page.getByLabel('Clipboard of the machine').fill('written in the panel');
    await page.getByRole('button', { name: 'Send to the machine' }).click();
    await until(
      async () => (await clipboard()) === 'written in the panel',
      'the panel’s text',
      START_MS,
    );
    await page.keyboard.press('Escape');
  });

  it('is framed in dark, for who wants that', async () => {
    // Of what a person sees, the lightness of the page's ground and of its words, 0 to 1.
    const lightness = () =>
      page.locator('header h1').evaluate((title) => {
        const of = (colour) => {
          const [r, g, b] = colour.match(/[\d.]+/g).map(Number);
          return (0.2126 * r + 0.7152 * g + 0.0722 * b) / 255;
        };
        const header = title.closest('header');
        return [of(getComputedStyle(header).backgroundColor), of(getComputedStyle(title).color)];
      });
    const isDark = ([ground, words]) => ground < 0.2 && words > 0.7;
    const isLight = ([ground, words]) => ground > 0.8 && words < 0.3;
    await until(async () => isLight(await lightness()), 'a light page');
    await page.emulateMedia({ colorScheme: 'dark' });
    await until(async () => isDark(await lightness()), 'a dark page on a dark system');
    await page.emulateMedia({ colorScheme: 'light' });
    await page.getByRole('button', { name: 'Theme: as the system' }).click();
    await page.getByRole('button', { name: 'Theme: light' }).click();
    await page.getByRole('button', { name: 'Theme: dark' }).waitFor();
    await until(async () => isDark(await lightness()), 'a dark page on a light system');
    await page.reload();
    await desktopIsLive(page);
    assert.ok(isDark(await lightness()), 'the choice is remembered');
    await page.getByRole('button', { name: 'Theme: dark' }).click();
  });

  it('is worth a picture', async (t) => {
    if (simulated) return t.skip('simulated machines have no desktop to show');
    const starting = page.locator('.stage .browser');
    await starting.waitFor({ state: 'detached', timeout: START_MS });
    await enterTerminal(page);
    await page.keyboard.press('Control+l');
    await until(async () => (await written(page)) < 600, 'an empty terminal', START_MS);
    const before = await written(page);
    await page.keyboard.type('uname -sr; node --version; gh --version');
    await page.keyboard.press('Enter');
    await until(async () => (await written(page)) > before + 3000, 'what was asked for', START_MS);
    await settled(() => written(page), 'the terminal', START_MS);
    await settled(() => coloursOf(page), 'the browser', START_MS);
    // The README's: nothing of the page has the focus, or is pointed at.
    await page.locator('h1').click();
    await page.locator('.hint').waitFor({ state: 'detached' });
    await picture(page, 'session', { alone: true });
  });

  it('has its browser back as it was after that was killed, and no bubble asks about pages', async (t) => {
    if (simulated) return t.skip('simulated machines have no browser');
    const pages = async () => {
      const { output } = await inGuest(id, TABS);
      return [...output.matchAll(/"url": "([^"]+)"/g)].map(([, address]) => address).sort();
    };
    await until(async () => (await pages()).length > 0, 'a page in the browser', START_MS);
    // Like a browser that was just started, it has the focus; where the page is empty, nothing more.
    const canvas = page.locator('.target canvas');
    const { width, height } = await canvas.boundingBox();
    await canvas.click({ position: { x: width * 0.9, y: height * 0.5 } });
    const pictureBefore = await stillPicture();
    const pagesBefore = await pages();

    const killed = await inGuest(id, 'pkill -KILL -o -x chromium', { root: true });
    assert.equal(killed.code, 0);
    await until(
      async () => differs(pictureBefore, await browserPicture()) > BUBBLE,
      'the picture without its browser',
      START_MS,
    );
    await until(
      async () => {
        const now = await pages();
        return now.length === pagesBefore.length && now.every((p, i) => p === pagesBefore[i]);
      },
      `the pages ${pagesBefore}`,
      START_MS,
    );
    await until(
      async () => differs(pictureBefore, await stillPicture()) < BUBBLE,
      'the browser as it was, without a bubble',
      START_MS,
    );
    await picture(page, 'after the browser was killed');
    assert.equal(await page.locator('.stage[data-live="true"]').count(), 1);
  });

  it('had no uncaught error', () => {
    assert.deepEqual(browser.errors, []);
  });

  /** The browser's picture, once it stood still for long enough for a bubble to have come. */
  async function stillPicture() {
    let last = await browserPicture();
    let since = Date.now();
    await until(
      async () => {
        const now = await browserPicture();
        if (differs(last, now) > 0) since = Date.now();
        last = now;
        return Date.now() - since > STILL_MS;
      },
      'a picture that stands still',
      START_MS,
    );
    return last;
  }

  /** A sample of the part of the picture that is the browser's. */
  function browserPicture() {
    return page.locator('.target canvas').evaluate((canvas, part) => {
      const height = Math.floor(canvas.height * part);
      const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, height);
      const sample = [];
      for (let i = 0; i < data.length; i += 4 * 31) sample.push(data[i], data[i + 1], data[i + 2]);
      return sample;
    }, TERMINAL_FROM);
  }
});

/** The share of two pictures that is not the same, 0 to 1. */
function differs(a, b) {
  if (a.length !== b.length) return 1;
  let found = 0;
  for (let i = 0; i < a.length; i += 3) {
    // A compressed picture is not exact.
    if ([0, 1, 2].some((c) => Math.abs(a[i + c] - b[i + c]) > 24)) found += 1;
  }
  return found / (a.length / 3);
}

/** Whether something else lies where this element is; runs in the page. */
function isCovered(element) {
  const { x, y, width, height } = element.getBoundingClientRect();
  return !element.contains(document.elementFromPoint(x + width / 2, y + height / 2));
}
