package endpoint

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"
)

// errNoUser says that it cannot be made out which user logs in.
var errNoUser = errors.New("the user name cannot be read")

func noUserName(why string) error { return fmt.Errorf("%w: %s", errNoUser, why) }

// userName reads the user name of a login, in a top-level field of a JSON object or in a form, without
// changing what is sent on. A login without such a field names nobody, and the empty name is returned. One that
// could be read in two ways, the user service's and ours, is errNoUser: names that are given twice, or in a
// spelling that some libraries take for the same field, or in a body that is neither JSON nor a form.
func (a *Authenticator) userName(r *http.Request, b *body) (string, error) {
	if a.UserField == "" {
		return "", nil
	}
	if b.rest != nil {
		return "", errTooLarge
	}
	if r.Header.Get("Content-Encoding") != "" {
		return "", noUserName("the body is encoded")
	}
	n := namer{field: a.UserField}
	n.form(r.URL.RawQuery) // where many frameworks look for form fields too
	n.body(r.Header.Get("Content-Type"), b.head)
	return n.name, n.err
}

// namer collects the values of one field.
type namer struct {
	field string
	found bool
	name  string
	err   error
}

func (n *namer) take(value string) {
	if n.found {
		n.err = noUserName("it is given more than once")
	}
	n.found, n.name = true, value
}

// is says whether a field's name may be taken for the one that is looked for.
func (n *namer) is(name string) bool { return strings.EqualFold(strings.TrimSpace(name), n.field) }

func (n *namer) body(contentType string, data []byte) {
	data = bytes.TrimLeft(data, " \t\r\n")
	if len(data) == 0 {
		return
	}
	media, _, _ := mime.ParseMediaType(contentType)
	switch {
	case data[0] == '{' || media == "application/json" || strings.HasSuffix(media, "+json"):
		n.json(data) // some services look at the body alone
	case media == "application/x-www-form-urlencoded":
		n.form(string(data))
	default:
		n.err = noUserName("the body is neither JSON nor a form")
	}
}

func (n *namer) form(query string) {
	for pair := range strings.SplitSeq(query, "&") {
		name, value, _ := strings.Cut(pair, "=")
		name, err := url.QueryUnescape(name)
		if err != nil {
			n.err = noUserName("the form is malformed")
			return
		}
		if !n.is(name) {
			continue
		}
		value, err = url.QueryUnescape(value)
		if err != nil {
			n.err = noUserName("the form is malformed")
			return
		}
		n.take(value)
	}
}

func (n *namer) json(data []byte) {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	if err := n.object(d); err != nil {
		n.err = err
		return
	}
	if _, err := d.Token(); err != io.EOF {
		n.err = noUserName("the JSON goes on after its end")
	}
}

func (n *namer) object(d *json.Decoder) error {
	malformed := noUserName("the JSON is malformed")
	if t, err := d.Token(); err != nil {
		return malformed
	} else if t != json.Delim('{') {
		return noUserName("the JSON is no object")
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
		if !n.is(name) {
			continue
		}
		text, err := scalar(value)
		if err != nil {
			return err
		}
		n.take(text)
	}
	if _, err := d.Token(); err != nil { // the closing brace
		return malformed
	}
	return nil
}

// scalar returns a string's or a number's text, and nothing for null.
func scalar(value json.RawMessage) (string, error) {
	var text string
	var number json.Number
	switch {
	case json.Unmarshal(value, &text) == nil: // null leaves it empty
		return text, nil
	case json.Unmarshal(value, &number) == nil:
		return number.String(), nil
	}
	return "", noUserName("it is no string")
}
