package admin

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"mime"
	"net/http"
	"path"
	"time"
)

// dist is the page, built from admin/page by `tools/page build`.
//
//go:embed page/dist
var dist embed.FS

// contentPolicy lets the page load nothing but its own files, and be in no frame. Its scripts can make no HTML of text
// (Trusted Types). connect-src is the API.
const contentPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; " +
	"base-uri 'none'; form-action 'self'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"

// pageFiles are the files of the page by their paths.
var pageFiles = map[string]string{"/{$}": "index.html", "/app.js": "app.js", "/app.css": "app.css"}

// pageFile serves one file of the page. It has no secret, so it needs no token: the calls that it makes do.
func pageFile(name string) http.Handler {
	content, err := dist.ReadFile(path.Join("page/dist", name))
	if err != nil {
		panic(err) // it is part of the program
	}
	sum := sha256.Sum256(content)
	tag := `"` + hex.EncodeToString(sum[:8]) + `"`
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Type", mime.TypeByExtension(path.Ext(name)))
		h.Set("Content-Security-Policy", contentPolicy)
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cache-Control", "no-cache") // asks each time, so that a new version is seen at once
		h.Set("ETag", tag)
		http.ServeContent(w, r, name, time.Time{}, bytes.NewReader(content))
	})
}
