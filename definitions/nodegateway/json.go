package nodegateway

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"unicode/utf8"

	"gatepost/definitions"
)

// value is a JSON value and its place. The zero value is a missing one.
type value struct {
	// path is its JSON path, such as services[1].upStream. It is empty for the whole document.
	path         string
	line, column int
	// data is a string, a json.Number, a bool, nil for null, []value for an array, or object.
	data any
}

// object is a JSON object in the order of the file. Its names are unique.
type object []member

type member struct {
	name string
	value
}

// get returns the member with the name. If there is none, ok is false.
func (o object) get(name string) (v value, ok bool) {
	for _, m := range o {
		if m.name == name {
			return m.value, true
		}
	}
	return v, false
}

// kind names the value in a sentence.
func (v value) kind() string {
	switch v.data.(type) {
	case object:
		return "an object"
	case []value:
		return "a list"
	case string:
		return "a text"
	case json.Number:
		return "a number"
	case nil:
		return "null"
	}
	return fmt.Sprint(v.data)
}

// asJSON is the remedy for settings that are code.
const asJSON = "if the settings are JavaScript, print them: node -p 'JSON.stringify(require(\"./settings\"), null, 2)'"

// readJSON reads the one JSON value in text. An error is a definitions.Problems.
func readJSON(name string, text []byte) (value, error) {
	r := &reader{name: name, text: text, tokens: json.NewDecoder(bytes.NewReader(text)), line: 1, column: 1}
	r.tokens.UseNumber()
	if len(text) > definitions.MaxSize {
		return value{}, r.problem("", fmt.Sprintf("the file is larger than %d MiB", definitions.MaxSize>>20), "")
	}
	if !utf8.Valid(text) {
		return value{}, r.problem("", "the file is not UTF-8 text", "save it as UTF-8")
	}
	var whole json.RawMessage
	if err := json.Unmarshal(text, &whole); err != nil {
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			r.moveTo(int(syntax.Offset) - 1)
		}
		return value{}, r.problem("", "this is not JSON: "+err.Error(), asJSON)
	}
	return r.value("")
}

// reader reads a text that is known to be valid JSON.
type reader struct {
	name   string
	text   []byte
	tokens *json.Decoder
	// The place of the last token.
	offset, line, column int
}

// problem is a problem at the place of the last token.
func (r *reader) problem(path, what, remedy string) definitions.Problems {
	return definitions.Problems{{File: r.name, Line: r.line, Column: r.column, Field: path, What: what, Remedy: remedy, See: page}}
}

// moveTo moves the place forward to an offset.
func (r *reader) moveTo(offset int) {
	for r.offset < min(offset, len(r.text)) {
		c, size := utf8.DecodeRune(r.text[r.offset:])
		r.offset += size
		r.column++
		if c == '\n' {
			r.line, r.column = r.line+1, 1
		}
	}
}

func (r *reader) next() (json.Token, error) {
	begin := int(r.tokens.InputOffset())
	for begin < len(r.text) && bytes.IndexByte([]byte(" \t\r\n,:"), r.text[begin]) >= 0 {
		begin++
	}
	r.moveTo(begin)
	return r.tokens.Token()
}

func (r *reader) value(path string) (value, error) {
	token, err := r.next()
	v := value{path: path, line: r.line, column: r.column, data: token}
	switch token {
	case json.Delim('{'):
		v.data, err = r.object(path)
	case json.Delim('['):
		v.data, err = r.list(path)
	}
	return v, err
}

func (r *reader) list(path string) ([]value, error) {
	list := []value{}
	for r.tokens.More() {
		v, err := r.value(fmt.Sprintf("%s[%d]", path, len(list)))
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	_, err := r.next()
	return list, err
}

func (r *reader) object(path string) (object, error) {
	o, names := object{}, map[string]bool{}
	for r.tokens.More() {
		token, err := r.next()
		if err != nil {
			return nil, err
		}
		name, _ := token.(string)
		inside := join(path, name)
		if names[name] {
			return nil, r.problem(inside, "is given twice", "remove one of them")
		}
		names[name] = true
		v, err := r.value(inside)
		if err != nil {
			return nil, err
		}
		o = append(o, member{name, v})
	}
	_, err := r.next()
	return o, err
}

// plainName matches the names that a path has after a dot. Others are in brackets.
var plainName = regexp.MustCompile(`^[A-Za-z_$][A-Za-z0-9_$]{0,63}$`)

// join returns the path of a member.
func join(path, name string) string {
	switch {
	case !plainName.MatchString(name):
		return path + "[" + shown(name) + "]"
	case path == "":
		return name
	}
	return path + "." + name
}

// shown returns a text of the file for a message: quoted, and not longer than a line.
func shown(text string) string {
	const most = 64
	if runes := []rune(text); len(runes) > most {
		text = string(runes[:most]) + "…"
	}
	return strconv.Quote(text)
}
