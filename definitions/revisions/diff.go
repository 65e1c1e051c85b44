package revisions

import (
	"bytes"
	"fmt"
	"maps"
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

// Change says in a line what differs: "+orders -items ~users ~tokens".
func Change(old, now *definitions.Gateway) string {
	const most = 12 // a line is not longer than can be read
	var changes []string
	for _, part := range differing(old, now) {
		sign := "~"
		switch {
		case part.old == nil:
			sign = "+"
		case part.now == nil:
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

// content returns a gateway with one part alone. It is nil if a state does not have the part. It is a function because
// the messages of ten thousand services take 20 MiB.
type content func() *gatewayv1.Gateway

// differing returns the parts that differ, sorted by name.
func differing(old, now *definitions.Gateway) (out []part) {
	before, after := parts(old, now), parts(now, old)
	all := maps.Clone(before)
	maps.Copy(all, after)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		p := part{name, before[name], after[name]}
		if p.old == nil || p.now == nil || !proto.Equal(p.old(), p.now()) {
			out = append(out, p)
		}
	}
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
		all[field.TextName()] = func() *gatewayv1.Gateway { return alone }
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
			all[servicePart+s.Name] = func() *gatewayv1.Gateway {
				return &gatewayv1.Gateway{Services: []*gatewayv1.Service{s.Message()}}
			}
		}
	}
	return all
}

// text returns a part as YAML.
func (c content) text() ([]byte, error) {
	if c == nil {
		return nil, nil
	}
	text, err := definitions.Marshal(c())
	return bytes.TrimSuffix(text, []byte("services: []\n")), err // how Marshal writes that there are none
}
