package revisions

import (
	"bytes"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/rogpeppe/go-internal/diff"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"gatepost/definitions"
	gatewayv1 "gatepost/proto/gatepost/v1"
)

// Diff returns what differs between two states of the definitions, part by part and each in the unified form; empty
// where they say the same. Defaults are written out in both, and neither comments nor the order of services count. A
// nil Gateway is an empty one.
func Diff(oldName string, old *definitions.Gateway, newName string, now *definitions.Gateway) (string, error) {
	var out bytes.Buffer
	for _, part := range differing(old, now) {
		before, err := part.old.text()
		if err != nil {
			return "", err
		}
		after, err := part.now.text()
		if err != nil {
			return "", err
		}
		found := diff.Diff(oldName+": "+part.name, before, newName+": "+part.name, after)
		_, hunks, _ := bytes.Cut(found, []byte("\n")) // its first line names what the next two name
		out.Write(hunks)
	}
	return out.String(), nil
}

// Change lists the differences in a line: "+orders -items ~users ~tokens".
func Change(old, now *definitions.Gateway) string {
	const most = 12 // a line is not longer than can be read
	var changes []string
	for _, part := range differing(old, now) {
		sign := "~"
		switch {
		case part.old == (content{}):
			sign = "+"
		case part.now == (content{}):
			sign = "-"
		}
		changes = append(changes, sign+strings.TrimPrefix(part.name, servicePart))
	}
	switch more := len(changes) - most; {
	case len(changes) == 0:
		return "nothing that is served"
	case more > 0:
		return fmt.Sprintf("%s and %d more", strings.Join(changes[:most], " "), more)
	}
	return strings.Join(changes, " ")
}

// part is a part of the definitions in two states.
type part struct {
	name     string
	old, now content
}

// content is one part of the definitions: a field or a service. It is empty if a state does not have the part.
type content struct {
	field   *gatewayv1.Gateway // with this field alone
	service *definitions.Service
}

// differing returns the parts that differ, sorted by name.
func differing(old, now *definitions.Gateway) (out []part) {
	before, after := parts(old, now), parts(now, old)
	for name, p := range before {
		if !proto.Equal(p.message(), after[name].message()) {
			out = append(out, part{name, p, after[name]})
		}
	}
	for name, p := range after {
		if before[name] == (content{}) {
			out = append(out, part{name: name, now: p})
		}
	}
	slices.SortFunc(out, func(a, b part) int { return strings.Compare(a.name, b.name) })
	return out
}

// servicePart begins the name of the part that is a service; the other parts are the other fields.
const servicePart = "service "

// parts returns the parts of g, without the services that other has in the same form.
func parts(g, other *definitions.Gateway) map[string]content {
	all := map[string]content{}
	if g == nil {
		return all
	}
	rest := *g
	rest.Services = nil
	rest.Message().ProtoReflect().Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		alone := &gatewayv1.Gateway{}
		alone.ProtoReflect().Set(field, value)
		all[field.TextName()] = content{field: alone}
		return true
	})
	same := map[string]*definitions.Service{}
	if other != nil {
		for _, s := range other.Services {
			same[s.Name] = s
		}
	}
	for _, s := range g.Services {
		if !reflect.DeepEqual(same[s.Name], s) {
			all[servicePart+s.Name] = content{service: s}
		}
	}
	return all
}

// message returns a gateway with this part alone, or nil if there is none. Messages are made one at a time: those of
// ten thousand services take 20 MiB.
func (c content) message() *gatewayv1.Gateway {
	if c.service != nil {
		return &gatewayv1.Gateway{Services: []*gatewayv1.Service{c.service.Message()}}
	}
	return c.field
}

// text returns a part as YAML.
func (c content) text() ([]byte, error) {
	if c == (content{}) {
		return nil, nil
	}
	text, err := definitions.Marshal(c.message())
	return bytes.TrimSuffix(text, []byte("services: []\n")), err // how Marshal writes that there are none
}
