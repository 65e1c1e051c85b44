package endpoint

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"

	"gatepost/tokens/shield"
)

// ambiguousError explains why a user service could read another user name in a login than the one
// that the shield counts. It quotes nothing of the login.
type ambiguousError string

func (e ambiguousError) Error() string { return string(e) }

const errMedia = ambiguousError("send Content-Type application/json or application/x-www-form-urlencoded, in UTF-8")

// userName returns the value of the field that names the user of a login, or "" if field is empty
// or missing in the login. It does not change the request.
//
// The limit per user only works if the user service reads the same name. So the media type alone
// selects the parser, and anything that parsers read differently is an ambiguousError. That
// includes a body in which the parser of the other media type finds a name, because many services
// ignore the media type.
func userName(field string, r *http.Request, b *body) (string, error) {
	switch {
	case field == "":
		return "", nil
	case b.rest != nil:
		return "", errTooLarge
	case len(b.head) == 0:
		return "", nil
	case len(r.Header["Content-Encoding"]) > 0:
		return "", ambiguousError("send the body without Content-Encoding")
	case !utf8.Valid(b.head):
		return "", ambiguousError("send the body in UTF-8")
	}
	n := namer{field: field}
	err := error(errMedia)
	switch mediaType(r.Header) {
	case "application/json":
		err = n.json(b.head)
	case "application/x-www-form-urlencoded":
		err = n.form(string(b.head))
	}
	return n.name, err
}

// mediaType returns the media type in lower case, or "" if it is missing, repeated, or has a
// parameter other than the charset UTF-8. Some services search the whole value for the word json.
func mediaType(header http.Header) string {
	values := header["Content-Type"]
	if len(values) != 1 {
		return ""
	}
	media, parameter, _ := strings.Cut(strings.ToLower(values[0]), ";")
	switch strings.Trim(parameter, " \t") {
	case "", "charset=utf-8", `charset="utf-8"`, "charset=utf8":
		return strings.Trim(media, " \t")
	}
	return ""
}

// namer reads the value of one field.
type namer struct {
	field string
	found bool
	name  string
}

func (n *namer) take(value string) error {
	switch {
	case n.found:
		return ambiguousError("give the user's field once")
	case !unambiguous(value):
		return ambiguousError("send a user name without control characters")
	}
	n.found, n.name = true, value
	return nil
}

// unambiguous reports whether all parsers agree on a text. It must have no control characters,
// which some parsers cut off, and no invalid Unicode, which some replace by U+FFFD.
func unambiguous(text string) bool {
	return utf8.ValidString(text) && !strings.ContainsFunc(text, func(r rune) bool {
		return unicode.IsControl(r) || r == utf8.RuneError
	})
}

// is reports whether a field is the user's. It returns an error if only some frameworks match it.
func (n *namer) is(name string) (bool, error) {
	switch {
	case strings.EqualFold(name, n.field): // as encoding/json matches
		return true, nil
	case !unambiguous(name):
		return false, ambiguousError("send field names without control characters")
	case n.resembles(name):
		return false, ambiguousError("spell the user's field as the user service does")
	}
	return false, nil
}

// underscores converts a field name as PHP does. After trimming, it also covers the array, object
// and default marks of others: [username], username[] (qs), !username, _username (Spring).
var underscores = strings.NewReplacer(" ", "_", ".", "_", "[", "_", "]", "_", "!", "_")

// resembles reports whether some frameworks treat a name as the user's field or as a part of it,
// such as username[0]. JavaScript's Object.assign copies the fields of __proto__.
func (n *namer) resembles(name string) bool {
	name, field := shield.Normalise(name), shield.Normalise(n.field)
	flat := func(s string) string { return strings.Trim(underscores.Replace(s), "_") }
	part, isPart := strings.CutPrefix(strings.TrimLeft(name, "[!"), field)
	return flat(name) == flat(field) || isPart && strings.IndexAny(part, "[].") == 0 || name == "__proto__"
}

func (n *namer) form(text string) error {
	if strings.Contains(text, ";") { // a separator to older parsers
		return ambiguousError("send ; in a form as %3B")
	}
	for pair := range strings.SplitSeq(text, "&") {
		name, value, _ := strings.Cut(pair, "=")
		name, err := url.QueryUnescape(name)
		if err != nil {
			return ambiguousError("the form is malformed")
		}
		if strings.HasPrefix(strings.TrimLeft(name, "\ufeff \t\r\n"), "{") {
			return ambiguousError("the body looks like JSON: send Content-Type application/json")
		}
		if is, err := n.is(name); err != nil {
			return err
		} else if !is {
			continue
		}
		if value, err = url.QueryUnescape(value); err != nil {
			return ambiguousError("the form is malformed")
		}
		if err := n.take(value); err != nil {
			return err
		}
	}
	return nil
}

func (n *namer) json(data []byte) error {
	if err := n.notInForm(string(data)); err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(data))
	if err := n.object(d); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return ambiguousError("the JSON has something after its end")
	}
	return nil
}

// notInForm returns an error if the user's field appears in a JSON body when it is parsed as a
// form.
func (n *namer) notInForm(text string) error {
	for pair := range strings.FieldsFuncSeq(text, func(r rune) bool { return r == '&' || r == ';' }) {
		name, _, _ := strings.Cut(pair, "=")
		if decoded, err := url.QueryUnescape(name); err == nil {
			name = decoded
		}
		if strings.EqualFold(name, n.field) || n.resembles(name) {
			return ambiguousError("the JSON can be read as a form: escape & and ; in it")
		}
	}
	return nil
}

func (n *namer) object(d *json.Decoder) error {
	const malformed = ambiguousError("the JSON is malformed")
	if t, err := d.Token(); err != nil {
		return malformed
	} else if t != json.Delim('{') {
		return ambiguousError("the JSON is not an object")
	}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return malformed
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return malformed
		}
		name, _ := key.(string)
		if is, err := n.is(name); err != nil {
			return err
		} else if !is {
			continue
		}
		text, err := scalar(value)
		if err != nil {
			return err
		}
		if err := n.take(text); err != nil {
			return err
		}
	}
	if _, err := d.Token(); err != nil { // the closing brace
		return malformed
	}
	return nil
}

// wholeNumber matches numbers with one spelling that are exact in every language: no sign, fraction
// or exponent, and less than 2^53.
var wholeNumber = regexp.MustCompile(`^(0|[1-9][0-9]{0,14})$`)

// scalar returns the text of a string or a whole number, and "" for null.
func scalar(value json.RawMessage) (string, error) {
	var text string
	switch {
	case json.Unmarshal(value, &text) == nil: // null leaves it empty
		return text, nil
	case wholeNumber.Match(value):
		return string(value), nil
	}
	return "", ambiguousError("send the user name as a string")
}
