package tokens

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"testing"
	"time"
)

const goodUUID = "3f1c9a52-7b1e-4c07-9d2f-0a6b5c4d3e2f"

func mustMint(t testing.TB, f Format) Token {
	t.Helper()
	token, err := Mint(f)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func TestMintedTokensAreAccepted(t *testing.T) {
	for _, f := range []Format{FormatUUID, FormatSecret, ""} {
		token := mustMint(t, f)
		text := token.Reveal()
		for _, value := range []string{text, "Bearer " + text, "bearer " + text, "BEARER " + text, "bEaReR   " + text} {
			got, err := FromAuthorization(value)
			if err != nil {
				t.Errorf("format %q: a minted token is refused after %q", f, strings.TrimSuffix(value, text))
				continue
			}
			if got.Hash() != token.Hash() || got.Reveal() != text {
				t.Errorf("format %q: another token was read", f)
			}
		}
	}
}

func TestFormatOfMintedTokens(t *testing.T) {
	if text := mustMint(t, FormatUUID).Reveal(); len(text) != 36 || text[14] != '4' {
		t.Errorf("a uuid token has %d characters and version %c", len(text), text[14])
	}
	if text := mustMint(t, FormatSecret).Reveal(); len(text) != 55 || !strings.HasPrefix(text, "gp1_") {
		t.Errorf("a secret token has %d characters", len(text))
	}
	seen := map[Hash]bool{}
	for range 1000 {
		for _, f := range []Format{FormatUUID, FormatSecret} {
			h := mustMint(t, f).Hash()
			if seen[h] {
				t.Fatal("one token was minted twice")
			}
			seen[h] = true
		}
	}
}

// The inputs are minted tokens with one character replaced, inserted or removed.
func TestPatternMatchesAcceptedTokens(t *testing.T) {
	pattern := regexp.MustCompile("^" + Pattern + "$")
	for _, format := range []Format{FormatUUID, FormatSecret} {
		token := mustMint(t, format).Reveal()
		if !pattern.MatchString(token) {
			t.Errorf("no match for a token of the format %s", format)
		}
		for i := range len(token) {
			for _, c := range []string{"", "0", "5", "g", "G", "A", "-", "_", " ", "\n", "\xff"} {
				for _, text := range []string{token[:i] + c + token[i+1:], token[:i] + c + token[i:]} {
					if _, err := Parse(text); err == nil && !pattern.MatchString(text) {
						t.Errorf("no match for %q, which Parse accepts", text)
					} else if err != nil && format == FormatUUID && pattern.MatchString(text) {
						t.Errorf("a match for %q, which Parse refuses", text)
					}
				}
			}
		}
	}
}

func TestMalformedTokens(t *testing.T) {
	secret := mustMint(t, FormatSecret).Reveal()
	flipped := []byte(secret)
	flipped[10] ^= 1
	for name, value := range map[string]string{
		"nothing":                  "",
		"a space":                  " ",
		"the scheme alone":         "Bearer",
		"the scheme and a space":   "Bearer ",
		"the scheme, many spaces":  "Bearer      ",
		"the scheme twice":         "Bearer Bearer " + goodUUID,
		"no space after scheme":    "Bearer" + goodUUID,
		"a tab after the scheme":   "Bearer\t" + goodUUID,
		"another scheme":           "Basic dXNlcjpwYXNz",
		"another scheme, a token":  "Basic " + goodUUID,
		"Digest":                   `Digest username="a"`,
		"Token":                    "Token " + goodUUID,
		"two words":                goodUUID + " " + goodUUID,
		"two words after Bearer":   "Bearer " + goodUUID + " " + goodUUID,
		"a comma":                  goodUUID + "," + goodUUID,
		"a comma, two schemes":     "Bearer " + goodUUID + ",Bearer " + goodUUID,
		"a comma and a space":      "Bearer " + goodUUID + ", Bearer " + goodUUID,
		"a comma at the end":       goodUUID + ",",
		"a space at the end":       goodUUID + " ",
		"a space in front":         " " + goodUUID,
		"a newline at the end":     goodUUID + "\n",
		"a NUL at the end":         goodUUID + "\x00",
		"a NUL within":             goodUUID[:20] + "\x00" + goodUUID[21:],
		"DEL":                      goodUUID[:35] + "\x7f",
		"bytes that are not UTF-8": goodUUID[:34] + "\xff\xfe",
		"full-width digits":        "３" + goodUUID[1:],
		"upper case":               strings.ToUpper(goodUUID),
		"one letter in upper case": strings.Replace(goodUUID, "c", "C", 1),
		"version 1":                goodUUID[:14] + "1" + goodUUID[15:],
		"version 7":                goodUUID[:14] + "7" + goodUUID[15:],
		"the wrong variant":        goodUUID[:19] + "c" + goodUUID[20:],
		"no hyphens":               strings.ReplaceAll(goodUUID, "-", ""),
		"braces":                   "{" + goodUUID + "}",
		"a URN":                    "urn:uuid:" + goodUUID,
		"one character short":      goodUUID[:35],
		"one character long":       goodUUID + "0",
		"a letter beyond f":        goodUUID[:35] + "g",
		"quotes":                   `"` + goodUUID + `"`,
		"a secret, one bit off":    string(flipped),
		"a secret, upper-case sum": secret[:47] + strings.ToUpper(secret[47:]) + "G",
		"a secret, another prefix": "gp2_" + secret[4:],
		"a secret, no prefix":      secret[4:],
		"a secret cut short":       secret[:54],
		"a secret with padding":    secret + "=",
		"a JWT":                    "eyJhbGciOiJIUzI1NiJ9.e30.ZRrHA1JJJW8opsbCGfG_HACGpVUMN_a9IV7pAx_Zmeo",
		"far too long":             "Bearer " + strings.Repeat(" ", MaxTokenLength) + goodUUID,
		"a flood":                  strings.Repeat("a", 1<<20),
	} {
		token, err := FromAuthorization(value)
		if !errors.Is(err, ErrMalformed) || token.text != nil {
			t.Errorf("%s: accepted as a token (%v)", name, err)
		}
	}
}

// A body that is not base64url is refused even with a valid checksum.
func TestSecretMustBeBase64URL(t *testing.T) {
	body := strings.Repeat("a", secretBody-1) + ","
	sum := checksum(body)
	if _, err := Parse(secretPrefix + body + string(sum[:])); !errors.Is(err, ErrMalformed) {
		t.Error("a secret with a comma is accepted")
	}
}

// Structs that contain a token in an exported or an unexported field.
type (
	exportedField   struct{ Token Token }
	unexportedField struct{ token Token }
)

func TestTokenIsNotPrinted(t *testing.T) {
	for _, f := range []Format{FormatUUID, FormatSecret} {
		token := mustMint(t, f)
		text := token.Reveal()
		values := map[string]any{
			"itself":                  token,
			"a pointer":               &token,
			"an exported field":       exportedField{token},
			"an unexported field":     unexportedField{token},
			"a pointer to one":        &unexportedField{token},
			"a slice":                 []Token{token},
			"a slice of structs":      []unexportedField{{token}},
			"a map":                   map[string]Token{"t": token},
			"an interface in a slice": []any{unexportedField{token}},
		}
		for name, v := range values {
			for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "% x", "%#x", "%d", "%t", "%p", "%U", "%c", "%o", "%e", "%10s", "%T"} {
				mustNotShow(t, fmt.Sprintf("%s by %s", name, verb), fmt.Sprintf(verb, v), text)
			}
			mustNotShow(t, name+" by Sprint", fmt.Sprint(v), text)
			mustNotShow(t, name+" in an error", fmt.Errorf("checking %v: %w", v, ErrMalformed).Error(), text)
			if data, err := json.Marshal(v); err == nil {
				mustNotShow(t, name+" as JSON", string(data), text)
			}
			for kind, handler := range map[string]func(*bytes.Buffer) slog.Handler{
				"text": func(b *bytes.Buffer) slog.Handler { return slog.NewTextHandler(b, nil) },
				"json": func(b *bytes.Buffer) slog.Handler { return slog.NewJSONHandler(b, nil) },
			} {
				var out bytes.Buffer
				slog.New(handler(&out)).Info("checked", "token", v, slog.Group("g", "token", v))
				mustNotShow(t, name+" by slog, "+kind, out.String(), text)
			}
		}
	}
}

// mustNotShow fails the test if out contains the token or half of it, in clear or in hex.
func mustNotShow(t *testing.T, how, out, text string) {
	t.Helper()
	for _, part := range []string{text[:12], text[len(text)-12:], fmt.Sprintf("%x", text[:12]), fmt.Sprintf("%X", text[:12])} {
		if strings.Contains(out, part) {
			t.Errorf("%s prints the token", how)
		}
	}
}

func TestRedactedText(t *testing.T) {
	token := mustMint(t, FormatUUID)
	if got := fmt.Sprintf("%v %s", token, token); got != "[redacted] [redacted]" {
		t.Errorf("printed as %q", got)
	}
	if data, _ := json.Marshal(map[string]Token{"t": token}); string(data) != `{"t":"[redacted]"}` {
		t.Errorf("as JSON it is %s", data)
	}
}

func TestHashPrintsFingerprint(t *testing.T) {
	h := mustMint(t, FormatUUID).Hash()
	for _, verb := range []string{"%v", "%+v", "%s", "%x"} {
		out := fmt.Sprintf(verb+" "+verb, h, &Session{Hash: h})
		if strings.Contains(out, h.Hex()[:16]) {
			t.Errorf("%q prints the hash", out)
		}
	}
	data, err := json.Marshal(&Session{Hash: h, Issued: time.Now()})
	if err != nil || !strings.Contains(string(data), `"Hash":"`+h.String()+`"`) {
		t.Errorf("as JSON it is %s (%v)", data, err)
	}
}

func TestZeroToken(t *testing.T) {
	var none Token
	if none.Reveal() != "" || fmt.Sprint(none) != redacted {
		t.Error("the zero Token is not empty")
	}
}

func FuzzFromAuthorization(f *testing.F) {
	for _, seed := range []string{goodUUID, "Bearer " + goodUUID, "bearer  " + goodUUID, "", "Basic x", goodUUID + "," + goodUUID, "gp1_" + strings.Repeat("A", 51)} {
		f.Add(seed)
	}
	secret := mustMint(f, FormatSecret)
	f.Add(secret.Reveal())
	f.Fuzz(func(t *testing.T, value string) {
		token, err := FromAuthorization(value)
		if err != nil {
			if err != ErrMalformed || token.text != nil {
				t.Fatalf("refused with %v and a token", err)
			}
			return
		}
		text := token.Reveal()
		if !strings.HasSuffix(value, text) || strings.ContainsAny(text, " ,\t\r\n\x00") {
			t.Fatal("the parsed token is not the sent credential")
		}
		if front := value[:len(value)-len(text)]; front != "" && !strings.EqualFold(strings.TrimRight(front, " ")+" ", "bearer ") {
			t.Fatalf("a token was parsed after %q", front)
		}
		again, err := Parse(text)
		if err != nil || again.Hash() != token.Hash() {
			t.Fatal("a parsed token cannot be parsed again")
		}
	})
}

func BenchmarkFromAuthorization(b *testing.B) {
	for _, f := range []Format{FormatUUID, FormatSecret} {
		value := "Bearer " + mustMint(b, f).Reveal()
		b.Run(string(f), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				token, err := FromAuthorization(value)
				if err != nil {
					b.Fatal(err)
				}
				_ = token.Hash()
			}
		})
	}
}
