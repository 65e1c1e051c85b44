// Package definitions decides whether a definitions file is valid, and parses it.
//
// A file is a gatepost.v1.Gateway in YAML. [Parse] returns either a [Gateway], in which every value is parsed and every
// default is filled in, or all problems of the file, each [Problem] with its position and its remedy. Every rule about
// definitions is in this package, and no other package parses a value of the definitions:
//
//   - structure.go: the fields and types of the schema
//   - constraints.go: the constraints of the schema (buf.validate)
//   - semantics.go: what values mean, alone and together; it makes the [Gateway]
//   - folder.go: the files of a folder become one document before the three
//
// [Definitions.Next] parses only what changed. A [Watcher] follows a file or a folder, [LastGood] keeps the last
// active definitions.
package definitions

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/proto"

	gatewayv1 "gatepost/proto/gatepost/v1"
	"gatepost/regularfile"
	"gatepost/yamlof"
)

// MaxSize is the size in bytes above which a definitions file is refused unread.
const MaxSize = 16 << 20

// OwnPath is the path that, with all paths below it and below Tokens.Path, is reserved for the gateway.
const OwnPath = "/.gatepost"

// VersionPath is the path at which Envoy responds with the version of its routes, as a JSON string. It is public, and
// the version is only a hash.
const VersionPath = OwnPath + "/version"

// Definitions is a valid file, or a folder of files that are valid together. It is immutable.
type Definitions struct {
	// Name is the name of the file in problems: its path or another source.
	Name string
	// Text is the content of the file. Of a folder it is one file with the same meaning.
	Text []byte
	// Gateway is the parsed text.
	Gateway *Gateway

	files  []folderFile // of a folder; nil if it is a file
	places []position   // :: index of the service → where it begins
	end    position     // where the field after the services begins; zero if they are the last field
}

// Parse parses the definitions in text. An error is a [Problems] with all problems, sorted by position. Parse keeps
// text, so the caller must not change it.
func Parse(name string, text []byte) (*Definitions, error) {
	return parse(&Definitions{Name: name, Text: text})
}

// parse completes d, of which the name and the text or the files are known.
func parse(d *Definitions) (*Definitions, error) {
	f := d.read()
	if f.root == nil {
		return nil, f.sorted()
	}
	d.files = f.files
	message := readStructure(f)
	var err error
	if d.files != nil { // before the message shares its lists with the gateway
		d.Text, err = Marshal(message)
	}
	checkConstraints(f, message)
	d.Gateway = parseGateway(f, message)
	if len(f.found)+len(f.merging) > 0 {
		return nil, f.sorted()
	}
	d.places, d.end = servicePlaces(f.root)
	return d, err
}

// read reads the document of d. If it has none, the result has problems.
func (d *Definitions) read() *findings {
	f := &findings{file: d.Name, files: slices.Clone(d.files)}
	if d.files != nil {
		f.root = f.merge()
	} else {
		f.root, f.found = readDocument(d.Name, d.Text)
	}
	return f
}

// Load parses the definitions at path, a file or a folder. If they could not be read, the error wraps the reason,
// such as fs.ErrNotExist.
func Load(path string) (*Definitions, error) {
	read, err := readSource(path)
	if err != nil {
		return nil, err
	}
	return read.parse(nil)
}

// Marshal returns g as the text of a definitions file, with snake_case names.
func Marshal(g *gatewayv1.Gateway) ([]byte, error) {
	const none = "services: []\n" // JSON of protobuf leaves out an empty list, and the field is required
	if proto.Size(g) == 0 {
		return []byte(none), nil
	}
	text, err := yamlof.Message(g)
	if err != nil {
		return nil, fmt.Errorf("writing definitions as YAML: %w", err)
	}
	if len(g.GetServices()) == 0 {
		text = append(text, none...)
	}
	return text, nil
}

// Place returns the file, and the line in it, in which the service with the index i in Gateway.Services begins.
func (d *Definitions) Place(i int) (file string, line int) {
	return place(d.Name, d.files, d.places[i].line)
}

// line names the line on which a service begins for a sentence.
func (d *Definitions) line(i int) string { return lineText(d.Name, d.files, d.places[i].line) }

// Hash returns the SHA-256 of the text in hex.
func (d *Definitions) Hash() string { return Hash(d.Text) }

// Hash returns the SHA-256 of a text in hex.
func Hash(text []byte) string {
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}

// readFile reads the file at path, up to a little more than MaxSize.
func readFile(path string) ([]byte, error) {
	text, err := regularfile.ReadUpTo(path, MaxSize+1)
	if err != nil {
		return nil, fmt.Errorf("reading definitions: %w", err)
	}
	return text, nil
}

// servicePlaces returns the positions of the services, and that of the field after them.
func servicePlaces(root *yaml.Node) (places []position, end position) {
	at := func(node *yaml.Node) position { return position{node.Line, node.Column} }
	for i := 0; i < len(root.Content); i += 2 {
		if root.Content[i].Value != "services" {
			continue
		}
		for _, service := range root.Content[i+1].Content {
			places = append(places, at(service))
		}
		if i+2 < len(root.Content) {
			end = at(root.Content[i+2])
		}
	}
	return places, end
}
