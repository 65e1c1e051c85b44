package definitions

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// emptyRemedy is required because a truncated or unfinished file must not remove all services.
const emptyRemedy = "a gateway without services is written as `services: []`"

// readDocument reads the one YAML document in text and returns its root, a mapping.
func readDocument(name string, text []byte) (*yaml.Node, Problems) {
	if fault, pos := checkText(text); fault != nil {
		return nil, Problems{problem(name, nil, pos, "", fault)}
	}
	document, next, err := decodeYAML(text)
	fileProblem := func(node *yaml.Node, what, remedy string) Problems {
		pos := position{1, 1}
		if node != nil {
			pos = position{node.Line, node.Column}
		}
		return Problems{problem(name, nil, pos, "", aboutFile.faultf(remedy, "%s", what))}
	}
	if err != nil {
		return nil, Problems{syntaxProblem(name, text, err)}
	}
	if document == nil || len(document.Content) != 1 {
		return nil, fileProblem(nil, "the file is empty", emptyRemedy)
	}
	root := document.Content[0]
	switch {
	case next != nil:
		return nil, fileProblem(next, "a second YAML document begins here", "write one file with one document; remove the line `---`")
	case root.Kind == yaml.ScalarNode && root.Tag == "!!null":
		return nil, fileProblem(nil, "the file is empty", emptyRemedy)
	case root.Kind != yaml.MappingNode:
		return nil, fileProblem(root, "the file is "+kindOf(root)+", not fields", "begin with a field, such as `services:`")
	}
	return root, nil
}

// decodeYAML returns the first document and the second one. A document that is missing is nil.
func decodeYAML(text []byte) (document, next *yaml.Node, err error) {
	defer recovered(&err)
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	if document, err = decodeNext(decoder); document == nil || err != nil {
		return nil, nil, err
	}
	next, err = decodeNext(decoder)
	return document, next, err
}

// recovered turns a panic into an error. A bug of the YAML parser must not end a running gateway.
func recovered(err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("yaml: the parser panicked: %v", p)
	}
}

func decodeNext(decoder *yaml.Decoder) (*yaml.Node, error) {
	var node yaml.Node
	switch err := decoder.Decode(&node); {
	case errors.Is(err, io.EOF):
		return nil, nil // the end of the file is neither a document nor an error
	case err != nil:
		return nil, err
	}
	return &node, nil
}

// checkText refuses a text that is too large, not UTF-8, or has a control character. YAML 1.1 ends a line at
// characters at which no editor does (a lone CR, NEL, LS, PS), so line numbers would be wrong.
func checkText(text []byte) (*fault, position) {
	if len(text) > MaxSize {
		return aboutFile.faultf("", "the file is larger than %d MiB", MaxSize>>20), position{1, 1}
	}
	pos := position{1, 1}
	for i := 0; i < len(text); {
		r, size := utf8.DecodeRune(text[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			return aboutFile.faultf("save it as UTF-8", "the file is not UTF-8 text"), pos
		case r == '\r' && i+1 < len(text) && text[i+1] == '\n':
		case r == '\n':
			pos = position{pos.line + 1, 0}
		case r < ' ' && r != '\t', r >= 0x7f && r < 0xa0, r == '\u2028', r == '\u2029':
			return aboutFile.faultf("remove it", "the character %U does not belong in a definitions file", r), pos
		}
		pos.column++
		i += size
	}
	return nil, position{}
}

var syntaxError = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)$`)

// syntaxProblem turns an error of the YAML parser into a problem. The parser names the line on which the construct that
// it could not parse began, so this looks for the first line with which the text fails.
func syntaxProblem(name string, text []byte, err error) Problem {
	line, what := readSyntaxError(err)
	lines := bytes.SplitAfter(text, []byte("\n"))
	if exact, ok := firstFailing(lines, what); ok {
		line = exact
	}
	line = min(max(line, 1), len(lines))
	first := lines[line-1]
	column := len(first) - len(bytes.TrimLeft(first, " ")) + 1
	remedy := "see that the lines around it are indented alike, with spaces, and that quotes and brackets are closed"
	if bytes.HasPrefix(bytes.TrimLeft(first, " "), []byte("\t")) {
		remedy = "indent with spaces, not with tabs"
	}
	if variable.Match(first) {
		remedy = "variables are not replaced, and in brackets YAML takes the { of one for its own: " + variableRemedy("")
	}
	return problem(name, nil, position{line, column}, "", aboutFile.faultf(remedy, "this is no YAML: %s", what))
}

func readSyntaxError(err error) (line int, what string) {
	m := syntaxError.FindStringSubmatch(strings.ReplaceAll(err.Error(), "\n", " "))
	if m == nil {
		return 0, err.Error()
	}
	line, _ = strconv.Atoi(m[1]) // 0 if the parser names none
	return line, m[2]
}

// firstFailing returns the number of the first line after which the text, if it is cut off there, fails with the
// error of the whole text.
func firstFailing(lines [][]byte, what string) (line int, ok bool) {
	const most = 20_000 // lines; in a longer file the parser's line is used
	if len(lines) > most {
		return 0, false
	}
	fails := func(n int) bool {
		_, _, err := decodeYAML(bytes.Join(lines[:n], nil))
		if err == nil {
			return false
		}
		_, got := readSyntaxError(err)
		return got == what
	}
	good, bad := 0, len(lines)
	if !fails(bad) {
		return 0, false
	}
	for bad-good > 1 {
		if middle := (good + bad) / 2; fails(middle) {
			bad = middle
		} else {
			good = middle
		}
	}
	return bad, true
}

// kindOf names a node in a sentence.
func kindOf(node *yaml.Node) string {
	switch {
	case node.Kind == yaml.MappingNode:
		return "a set of fields"
	case node.Kind == yaml.SequenceNode:
		return "a list"
	case node.Kind == yaml.AliasNode:
		return "an alias"
	case node.Tag == "!!null":
		return "nothing"
	}
	return shown(node.Value)
}
