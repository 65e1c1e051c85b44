package definitions

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/reflect/protoreflect"

	gatewayv1 "gatepost/proto/gatepost/v1"
	"gatepost/regularfile"
)

// extensions are the ends of the names of definitions files in a folder.
var extensions = []string{".yaml", ".yml", ".json"}

// folderFile is one file of a folder. The nodes of all files are merged into one document, in which a file begins below
// the files before it: its nodes have linesBefore added to their lines.
type folderFile struct {
	path                        string
	text                        []byte
	linesBefore, servicesBefore int
}

// source is what was read from a path: the text of a file, or the files of a folder, sorted by name.
type source struct {
	path  string
	text  []byte
	files []folderFile // nil if path is a file
}

// readSource reads the file or the folder at path.
func readSource(path string) (source, error) {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		files, err := readFolder(path)
		return source{path: path, files: files}, err
	}
	text, err := readFile(path)
	return source{path: path, text: text}, err
}

// readFolder reads the definitions files of a folder. It never returns an empty slice without an error.
func readFolder(path string) ([]folderFile, error) {
	paths, err := filesIn(path)
	if err != nil {
		return nil, err
	}
	var files []folderFile
	size, lines := 0, 0
	for _, path := range paths {
		if !slices.Contains(extensions, filepath.Ext(path)) {
			return nil, fmt.Errorf("reading definitions: %s is not a definitions file: its name does not end in .yaml, .yml or .json; rename it, move it away, or put a dot before its name", path)
		}
		text, err := readFile(path)
		if err != nil {
			return nil, err
		}
		files = append(files, folderFile{path: path, text: text, linesBefore: lines})
		lines += strings.Count(string(text), "\n") + 1
		if size += len(text); size > MaxSize {
			return nil, fmt.Errorf("reading definitions: the files in %s are together larger than %d MiB", filepath.Dir(path), MaxSize>>20)
		}
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("reading definitions: %s has no definitions files; %s", path, emptyRemedy)
	}
	return files, nil
}

// filesIn returns the paths of what is in a folder, sorted, without hidden files and editors' copies.
func filesIn(path string) (paths []string, err error) {
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, fmt.Errorf("reading definitions: %w", err)
	}
	for _, entry := range entries {
		if name := entry.Name(); !strings.HasPrefix(name, ".") && !strings.HasPrefix(name, "#") && !strings.HasSuffix(name, "~") {
			paths = append(paths, filepath.Join(path, name))
		}
	}
	return paths, nil
}

// stateOfFile precedes the hash of a file in its state.
const stateOfFile = "content "

// contentState returns the state of the file at path without keeping its text, which would be garbage at each look. It
// is empty for a folder, and if the file cannot be read.
func contentState(path string) string {
	file, err := regularfile.Open(path)
	if err != nil {
		return ""
	}
	defer file.Close()
	h := sha256.New()
	if _, err := io.Copy(h, io.LimitReader(file, MaxSize+1)); err != nil {
		return ""
	}
	return stateOfFile + hex.EncodeToString(h.Sum(nil))
}

// state identifies what was read: equal states have equal contents, by the names of their files.
func (s source) state() string {
	if s.files == nil {
		return stateOfFile + Hash(s.text)
	}
	var b strings.Builder
	b.WriteString("folder")
	for _, file := range s.files {
		fmt.Fprintf(&b, " %q %s", file.path, Hash(file.text))
	}
	return b.String()
}

// parse parses what was read. Services that are unchanged since former, which may be nil, keep their pointer.
func (s source) parse(former *Definitions) (*Definitions, error) {
	if s.files == nil {
		return former.Next(s.path, s.text)
	}
	d, err := parse(&Definitions{Name: s.path, files: s.files})
	if err == nil && former != nil {
		keepUnchanged(former.Gateway.Services, d.Gateway.Services)
	}
	return d, err
}

// stamp returns what changes when the file, or a file of the folder, at path is written or replaced, without reading
// it. It is empty if there is none.
func stamp(path string) string {
	info, err := os.Stat(path)
	if err != nil {
		return ""
	}
	if !info.IsDir() {
		return stampOf(info)
	}
	paths, err := filesIn(path)
	if err != nil {
		return ""
	}
	stamps := []string{"folder"}
	for _, path := range paths {
		if info, err = os.Stat(path); err == nil {
			stamps = append(stamps, path, stampOf(info))
		}
	}
	return strings.Join(stamps, " ")
}

// merge reads each file of f, and makes one document of them. If a file is not YAML, the document is nil.
func (f *findings) merge() *yaml.Node {
	m := &merger{findings: f, root: &yaml.Node{Kind: yaml.MappingNode, Line: 1, Column: 1}, gateway: (*gatewayv1.Gateway)(nil).ProtoReflect().Descriptor()}
	for i := range f.files {
		file := &f.files[i]
		if m.services != nil {
			file.servicesBefore = len(m.services.Content)
		}
		root, problems := readDocument(file.path, file.text)
		f.merging = append(f.merging, problems...)
		if root != nil {
			moveDown(root, file.linesBefore)
			m.add(root)
		}
	}
	if slices.ContainsFunc(f.merging, func(p Problem) bool { return p.Field == "" }) {
		return nil // not all files could be read: the rest would be compared with half of the definitions
	}
	if m.services == nil && len(f.merging) > 0 {
		f.spoilAlso("services")
	}
	return m.root
}

// merger merges the documents of the files of a folder.
type merger struct {
	*findings
	gateway  protoreflect.MessageDescriptor
	root     *yaml.Node
	services *yaml.Node // of root; nil if no file has any yet
	settings *yaml.Node // the first field that is not services, in the one file that may have such fields
	owner    *yaml.Node // the document of that file
}

// add adds the document of one file: its services to those of all files, and its settings if no file before it has any.
func (m *merger) add(document *yaml.Node) {
	var services *yaml.Node
	unknown := false
	for i := 0; i+1 < len(document.Content); i += 2 {
		key, value := document.Content[i], document.Content[i+1]
		fd := fieldOf(key, m.gateway)
		switch {
		case fd == nil: // readStructure reports it
			unknown = true
			m.root.Content = append(m.root.Content, key, value)
		case fd.Name() != "services":
			m.addSetting(document, key, value)
		case services != nil:
			m.report(key, "services", aboutFields.faultf("remove one of them", "is given twice, first on %s", m.line(services)))
		case value.Kind != yaml.SequenceNode:
			services = key
			m.report(value, "services", wantList(value, fd))
		default:
			services = key
			m.addServices(key, value)
		}
	}
	if services == nil && !unknown && m.owner != document {
		m.report(document, "services", aboutFields.faultf(emptyRemedy, "is missing"))
	}
}

// report adds a problem of one file. It does not spoil the field, which other files have too.
func (m *merger) report(node *yaml.Node, field string, fault *fault) {
	m.merging = append(m.merging, problem(m.file, m.files, position{node.Line, node.Column}, field, fault))
}

func (m *merger) addServices(key, list *yaml.Node) {
	if m.services == nil {
		m.services = &yaml.Node{Kind: yaml.SequenceNode, Line: list.Line, Column: list.Column}
		m.root.Content = append(m.root.Content, key, m.services)
	}
	m.services.Content = append(m.services.Content, list.Content...)
}

func (m *merger) addSetting(document, key, value *yaml.Node) {
	if m.owner == nil {
		m.owner, m.settings = document, key
	}
	if m.owner == document {
		m.root.Content = append(m.root.Content, key, value)
		return
	}
	const remedy = "one file has the settings of the gateway; all others have only `services`"
	if fd := fieldOf(key, m.gateway); valueOf(m.owner, fd) != nil {
		m.report(key, key.Value, aboutFields.faultf(remedy, "is given twice, first on %s", m.line(valueOf(m.owner, fd))))
		return
	}
	m.report(key, key.Value, aboutFields.faultf(remedy, "is a setting of the gateway, and the settings begin on %s", m.line(m.settings)))
}

// moveDown adds lines to the lines of a node and of all nodes below it.
func moveDown(node *yaml.Node, lines int) {
	node.Line += lines
	for _, child := range node.Content {
		moveDown(child, lines)
	}
}

// place returns the file and the line in it of a line of the merged document. Without files it is the document's own
// line.
func place(name string, files []folderFile, line int) (file string, lineThere int) {
	for i := len(files) - 1; i >= 0; i-- {
		if line > files[i].linesBefore {
			return files[i].path, line - files[i].linesBefore
		}
	}
	return name, line
}

// problem makes a problem of a place in the merged document.
func problem(name string, files []folderFile, at position, field string, fault *fault) Problem {
	p := Problem{Column: at.column, Field: field, What: fault.what, Remedy: fault.remedy, See: fault.about.page()}
	p.File, p.Line = place(name, files, at.line)
	return p
}

// ownIndexes changes the index of a service in each problem to its index in its own file.
func ownIndexes(problems Problems, files []folderFile) {
	for i := range problems {
		p := &problems[i]
		at := slices.IndexFunc(files, func(f folderFile) bool { return f.path == p.File })
		list, ok := strings.CutPrefix(p.Field, "services[")
		index, rest, _ := strings.Cut(list, "]")
		if n, err := strconv.Atoi(index); at >= 0 && ok && err == nil {
			p.Field = "services[" + strconv.Itoa(n-files[at].servicesBefore) + "]" + rest
		}
	}
}

// lineText names a line of the merged document in a sentence: "line 7", or "line 7 of conf/orders.yaml".
func lineText(name string, files []folderFile, line int) string {
	file, line := place(name, files, line)
	if len(files) == 0 {
		return "line " + strconv.Itoa(line)
	}
	return "line " + strconv.Itoa(line) + " of " + file
}

// stampOf returns what changes when a file is written or replaced.
func stampOf(info os.FileInfo) string {
	var device, inode uint64
	if system, ok := info.Sys().(*syscall.Stat_t); ok {
		device, inode = uint64(system.Dev), system.Ino
	}
	return fmt.Sprintf("%d %d %d %d", device, inode, info.Size(), info.ModTime().UnixNano())
}
