package definitions

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"weak"

	"buf.build/go/protovalidate"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/reflect/protoreflect"

	gatewayv1 "gatepost/proto/gatepost/v1"
)

// validator returns the validator of the schema. It takes some ten milliseconds to make, and holds megabytes, a third
// of the memory of an idle gateway. So it is kept only until the next garbage collection.
func validator() (*schemaValidator, error) {
	if last := lastValidator.Load(); last != nil {
		if v := last.Value(); v != nil {
			return v, nil
		}
	}
	v, err := protovalidate.New(protovalidate.WithMessages(&gatewayv1.Gateway{}))
	if err != nil {
		return nil, err
	}
	kept := &schemaValidator{v}
	last := weak.Make(kept)
	lastValidator.Store(&last)
	return kept, nil
}

type schemaValidator struct{ protovalidate.Validator }

var lastValidator atomic.Pointer[weak.Pointer[schemaValidator]]

// checkConstraints finds the values that violate a constraint of the schema.
func checkConstraints(f *findings, g *gatewayv1.Gateway) {
	defer f.spoil()
	v, err := validator()
	if err == nil {
		err = v.Validate(g)
	}
	var broken *protovalidate.ValidationError
	switch {
	case err == nil:
	case errors.As(err, &broken):
		for _, violation := range broken.Violations {
			addViolation(f, violation)
		}
	default: // a constraint that cannot be checked is violated
		f.at(f.root, "", aboutFields.faultf("", "the rules of the model cannot be checked: %v", err))
	}
}

func addViolation(f *findings, v *protovalidate.Violation) {
	field := protovalidate.FieldPathString(v.Proto.GetField())
	if v.Proto.GetRuleId() == "repeated.unique" {
		addTwins(f, field)
		return
	}
	f.add(field, violationFault(f, field, v))
}

// addTwins adds a problem for each repeated item of a list.
func addTwins(f *findings, field string) {
	list, _ := f.locate(field)
	first := map[string]*yaml.Node{} // :: value → item
	for i, item := range list.Content {
		if earlier, twice := first[item.Value]; twice {
			f.add(fmt.Sprintf("%s[%d]", field, i),
				aboutFields.faultf("remove one of them", "%s is in the list twice, first on %s", shown(item.Value), f.line(earlier)))
			continue
		}
		first[item.Value] = item
	}
}

// words are the noun and the remedy for a value of a field whose constraint is a regular expression.
var words = map[protoreflect.FullName]struct{ noun, remedy string }{
	"gatepost.v1.Service.name":                    {"a name", "1 to 64 letters, digits, '.', '_' and '-', the first and the last a letter or digit"},
	"gatepost.v1.Service.path":                    {"a path", "the path that the service is found under, such as /orders"},
	"gatepost.v1.Service.upstreams":               {"an upstream", "where the service runs, such as http://orders:8080"},
	"gatepost.v1.Service.allowed_methods":         {"a method that can be allowed", "a method in capital letters, such as GET; never CONNECT or TRACE"},
	"gatepost.v1.Service.hosts":                   {"a host", "a name such as api.shop.example"},
	"gatepost.v1.Tokens.hosts":                    {"a host", "a name such as api.shop.example"},
	"gatepost.v1.UpstreamTls.server_name":         {"a server name", "write the name in the certificate of the upstreams, such as orders.internal"},
	"gatepost.v1.Service.scopes":                  {"a scope", "1 to 64 visible ASCII characters without quotes, spaces and backslashes"},
	"gatepost.v1.Cors.allow_headers":              {"a header name", "name each header, such as Content-Type; Envoy rejects a request header with an underscore, and * does not cover Authorization"},
	"gatepost.v1.Cors.expose_headers":             {"a header name", "name each header, such as ETag"},
	"gatepost.v1.Identity.user_header":            {"a header name", "letters, digits and hyphens, such as x-user-id; Envoy rejects an underscore"},
	"gatepost.v1.Authenticator.user_header":       {"a header name", "letters, digits and hyphens, such as userid"},
	"gatepost.v1.Authenticator.scopes_header":     {"a header name", "letters, digits and hyphens, such as scopes"},
	"gatepost.v1.Authenticator.url":               {"an address", "the whole address of the login, such as http://users/users/authenticate"},
	"gatepost.v1.Tokens.cookie":                   {"a cookie name", "letters, digits, hyphens, dots and underscores, such as session"},
	"gatepost.v1.Tokens.subprotocol":              {"a subprotocol", "letters, digits, hyphens, dots and underscores, such as gatepost.bearer"},
	"gatepost.v1.ClientAddresses.trusted_proxies": {"a range of addresses", "write a range such as 10.0.0.0/8, or a single address"},
	"gatepost.v1.Canary.upstreams":                {"an upstream", "where the canary runs, such as http://orders-next:8080"},
	"gatepost.v1.Canary.percent":                  {"a percentage", "write a percentage, such as 10"},
	"gatepost.v1.Affinity.header":                 {"a header name", "letters, digits and hyphens, such as x-tenant; Envoy rejects an underscore"},
	"gatepost.v1.Gateway.origins":                 {"an origin", "write it as a browser sends it, such as https://shop.example"},
}

func violationFault(f *findings, field string, v *protovalidate.Violation) *fault {
	known := words[fullName(field)]
	if _, there := f.locate(field); !there || v.Proto.GetRuleId() == "repeated.min_items" {
		return aboutFields.faultf(known.remedy, "is missing")
	}
	node, _ := f.locate(field)
	limit := v.RuleValue.String()
	switch kind, rule, _ := strings.Cut(v.Proto.GetRuleId(), "."); rule {
	case "in":
		return choiceFault(node, v)
	case "max_len":
		return aboutFields.faultf("at most "+limit+" characters", "is too long")
	case "max_items":
		return aboutFields.faultf("at most "+limit, "has too many entries")
	case "min_len":
		return aboutFields.faultf(known.remedy, "is empty")
	case "pattern", "not_in":
		return patternFault(node, known.noun, known.remedy)
	default:
		if kind == "duration" || kind == "uint32" || kind == "double" {
			return aboutFields.faultf(v.Proto.GetMessage(), "%s is out of range", node.Value)
		}
	}
	return aboutFields.faultf(known.remedy, "%s", v.Proto.GetMessage())
}

func patternFault(node *yaml.Node, noun, remedy string) *fault {
	value := node.Value
	if upper := strings.ToUpper(value); noun == words["gatepost.v1.Service.allowed_methods"].noun && upper != value {
		remedy = "write " + upper // methods are case-sensitive (RFC 9110 §9.1)
	}
	return aboutFields.faultf(remedy, "%s is not %s", shown(value), noun)
}

// choiceFault is the problem of a string that is none of the valid ones.
func choiceFault(node *yaml.Node, v *protovalidate.Violation) *fault {
	var choices []string
	for i := range v.RuleValue.List().Len() {
		if choice := v.RuleValue.List().Get(i).String(); choice != "" && choice != formerStrict {
			choices = append(choices, choice)
		}
	}
	return aboutFields.faultf("write "+strings.Join(choices, " or "), "is %s", shown(node.Value))
}

// fullName returns the full name in the schema of the field at a path.
func fullName(field string) (name protoreflect.FullName) {
	message := (*gatewayv1.Gateway)(nil).ProtoReflect().Descriptor()
	for step := range strings.SplitSeq(field, ".") {
		step, _, _ = strings.Cut(step, "[")
		if message == nil {
			return name
		}
		fd := message.Fields().ByName(protoreflect.Name(step))
		if fd == nil {
			return name
		}
		name, message = fd.FullName(), fd.Message()
	}
	return name
}
