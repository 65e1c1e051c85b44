import { defineConfig } from "vite"

// Names without hashes: the program serves the files with ETags, and a rebuild changes no name.
export default defineConfig({
  base: "./",
  build: {
    modulePreload: false,
    rollupOptions: { output: { entryFileNames: "app.js", assetFileNames: "app[extname]" } },
  },
  server: { proxy: { "/api": "http://127.0.0.1:18002" } },
})
