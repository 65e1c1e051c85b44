package definitions

import (
	"bytes"
	"fmt"
	"reflect"
	"slices"
	"sort"
	"strings"

	"buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/proto"

	gatewayv1 "gatepost/proto/gatepost/v1"
)

// Next parses the text that follows d. The result is that of [Parse], but unchanged services keep the pointer that they
// have in d. If only some services were edited, only those are parsed. d may be nil.
func (d *Definitions) Next(name string, text []byte) (*Definitions, error) {
	if d == nil {
		return Parse(name, text)
	}
	if next := d.edited(name, text); next != nil {
		return next, nil
	}
	next, err := Parse(name, text)
	if err != nil {
		return nil, err
	}
	keepUnchanged(d.Gateway.Services, next.Gateway.Services)
	return next, nil
}

// keepUnchanged replaces each present service by the equal former one.
func keepUnchanged(former, present []*Service) {
	byName := make(map[string]*Service, len(former))
	for _, s := range former {
		byName[s.Name] = s
	}
	for i, s := range present {
		if same := byName[s.Name]; reflect.DeepEqual(same, s) {
			present[i] = same
		}
	}
}

// edited is what the text says where it is that of d but for some of the services, and good; else nil: the whole is to be
// read, and says what is wrong and where.
//
// Of a list in block style a reader is in the same state wherever an item begins, whatever the items before it were. So
// two texts that are the same up to the beginning of an item, and from the beginning of an item on, are read the same
// there, and what lies between can be read as a list by itself.
func (d *Definitions) edited(name string, text []byte) *Definitions {
	e, ok := d.edit(text)
	if !ok || len(text) > MaxSize {
		return nil
	}
	between := d.readItems(name, e.now)
	if between == nil {
		return nil
	}
	former, now := d.Gateway.Services, between.Gateway.Services
	keepUnchanged(former[e.first:e.last], now)
	gateway := *d.Gateway
	gateway.Services = slices.Concat(former[:e.first], now, former[e.last:])
	next := &Definitions{Name: name, Text: text, Gateway: &gateway, end: d.end}
	if !goodTogether(gateway.Services) {
		return nil
	}
	more := bytes.Count(e.now, newline) - bytes.Count(e.former, newline)
	next.places = slices.Concat(d.places[:e.first], below(between.places, d.places[e.first].line-1), below(d.places[e.last:], more))
	if next.end.line > 0 {
		next.end.line += more
	}
	return next
}

// edit is what differs between two texts: the services [first, last) of the former, which stood in other lines.
type edit struct {
	first, last int
	former, now []byte
}

// edit finds it; false where it is more than services, or cannot be told.
func (d *Definitions) edit(text []byte) (e edit, ok bool) {
	items := d.offsets()
	same := commonPrefix(d.Text, text)
	alike := commonSuffix(d.Text[same:], text[same:])
	e.first = sort.Search(len(items)-1, func(i int) bool { return items[i]+d.places[i].column-1 > same }) - 1
	e.last = sort.SearchInts(items, len(d.Text)-alike)
	if e.first < 0 || e.last == len(items) {
		return e, false
	}
	from, to := items[e.first], len(text)-(len(d.Text)-items[e.last])
	e.former, e.now = d.Text[from:items[e.last]], text[from:to]
	return e, to == len(text) || text[to-1] == '\n'
}

// newline is the one end of a line that there is in a text: the others that YAML knows are refused (checkText).
var newline = []byte("\n")

// offsets is where in the text the line of each service begins, and as the last one where their list ends; empty where they
// are no list in block style, each item of which has its first line to itself.
func (d *Definitions) offsets() []int {
	out := make([]int, 0, len(d.places)+1)
	line, at := 1, 0
	lead := func(p position) string { // what stands before it on its line
		for ; line < p.line; line++ {
			at += bytes.IndexByte(d.Text[at:], '\n') + 1
		}
		out = append(out, at)
		return strings.Trim(string(d.Text[at:at+p.column-1]), " ")
	}
	for _, place := range d.places {
		if lead(place) != "-" {
			return nil
		}
	}
	switch {
	case d.end.line == 0:
		out = append(out, len(d.Text))
	case lead(d.end) != "":
		return nil
	}
	if before := d.Text[:out[0]]; bytes.HasPrefix(before, []byte("%")) || bytes.Contains(before, []byte("\n%")) {
		return nil // a directive, which tells what is meant in the list
	}
	return out
}

// readItems reads a part of the list of services, as if it was the whole text; nil where it is not good by itself, or more
// than a list.
func (d *Definitions) readItems(name string, items []byte) *Definitions {
	if bytes.Contains(items, []byte("\n---")) || bytes.Contains(items, []byte("\n...")) {
		return nil // the document may end there
	}
	// All that a service is held against beside other services.
	head := fmt.Appendf(nil, "listen: %q\ntokens: {path: %q}\nservices:\n", d.Gateway.Listen, d.Gateway.Tokens.Path)
	part, err := Parse(name, append(head, items...))
	if err != nil || part.end.line > 0 {
		return nil
	}
	part.places = below(part.places, -bytes.Count(head, newline))
	return part
}

// goodTogether says whether services that are good each by itself may all be served. Who asks does not tell why not.
func goodTogether(services []*Service) bool {
	list := (*gatewayv1.Gateway)(nil).ProtoReflect().Descriptor().Fields().ByName("services")
	rules := proto.GetExtension(list.Options(), validate.E_Field).(*validate.FieldRules)
	f := &findings{root: new(yaml.Node)}
	checkAmongServices(f, services)
	return len(f.found) == 0 && uint64(len(services)) <= rules.GetRepeated().GetMaxItems()
}

// below are places that much further below.
func below(places []position, lines int) []position {
	out := slices.Clone(places)
	for i := range out {
		out[i].line += lines
	}
	return out
}

// commonPrefix is for how many bytes two texts begin alike.
func commonPrefix(a, b []byte) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

// commonSuffix is for how many bytes they end alike.
func commonSuffix(a, b []byte) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[len(a)-1-i] != b[len(b)-1-i] {
			return i
		}
	}
	return n
}
