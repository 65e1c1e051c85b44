package definitions

import (
	"crypto/sha256"
	"encoding/hex"

	"google.golang.org/protobuf/proto"
)

// Versions returns a function that identifies what the definitions have about a service: a hash of the service and of
// the settings of the gateway, with every default. So it differs only if one of them does, and a change of another
// service has no effect. For nil it is the version of the settings alone.
func (g *Gateway) Versions() func(*Service) string {
	settings := *g
	settings.Services = nil
	common := content(settings.Message())
	return func(s *Service) string {
		all := common
		if s != nil {
			all = append(common[:len(common):len(common)], content(s.Message())...)
		}
		sum := sha256.Sum256(all)
		return hex.EncodeToString(sum[:6])
	}
}

// content returns the bytes of a message. Equal messages have equal bytes.
func content(m proto.Message) []byte {
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		panic(err) // definitions are UTF-8, as YAML is
	}
	return raw
}
