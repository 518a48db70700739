import { svelte } from '@sveltejs/vite-plugin-svelte';
import { defineConfig } from 'vitest/config';

const server = process.env['HOLDFAST_URL'] ?? 'http://127.0.0.1:7070';

export default defineConfig({
  plugins: [svelte()],
  build: {
    // noVNC uses top-level await.
    target: 'es2022',
    // Inlined files would become data: URLs, which the server's policy refuses for scripts.
    assetsInlineLimit: 0,
    // noVNC and xterm.js are loaded only on a session's page.
    chunkSizeWarningLimit: 700,
  },
  server: {
    // `npm run dev` talks to a server that runs; sign in with /?token=... of that server once.
    proxy: { '/api': { target: server, ws: true, changeOrigin: false } },
  },
  test: { include: ['src/**/*.test.ts'], environment: 'node' },
});
