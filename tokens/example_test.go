package tokens_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"gatepost/tokens"
	"gatepost/tokens/boltstore"
)

func ExampleMint() {
	token, err := tokens.Mint(tokens.FormatUUID)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("printed:", token) // only token.Reveal() returns the text
	fmt.Println("in the response:", len(token.Reveal()), "characters")
	// Output:
	// printed: [redacted]
	// in the response: 36 characters
}

func ExampleFromAuthorization() {
	bearer, _ := tokens.FromAuthorization("Bearer 8fa5e23a-b272-40b0-8a36-974384357fa6")
	raw, _ := tokens.FromAuthorization("8fa5e23a-b272-40b0-8a36-974384357fa6")
	fmt.Println("equal:", bearer.Hash() == raw.Hash())

	_, err := tokens.FromAuthorization("Basic YWxpY2U6d29uZGVybGFuZA==")
	fmt.Println("no token of ours:", errors.Is(err, tokens.ErrMalformed))
	// Output:
	// equal: true
	// no token of ours: true
}

// A login stores a session under the hash of a new token. The token itself goes to the client alone.
func ExampleStore() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "gatepost")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	var store tokens.Store
	if store, err = boltstore.Open(dir, boltstore.Config{}); err != nil {
		fmt.Println(err)
		return
	}
	defer store.Close()

	token, _ := tokens.Mint(tokens.FormatSecret)
	session, _ := tokens.NewSession(token.Hash(), "user-1", []string{"orders"}, time.Now(), time.Hour, 24*time.Hour)
	fmt.Println("create:", store.Create(ctx, session, 0))

	found, err := store.Lookup(ctx, token.Hash())
	fmt.Println("look up:", found.User, found.Scopes, err)

	fmt.Println("revoke:", store.Revoke(ctx, token.Hash()))
	_, err = store.Lookup(ctx, token.Hash())
	fmt.Println("look up:", err)
	// Output:
	// create: <nil>
	// look up: user-1 [orders] <nil>
	// revoke: <nil>
	// look up: unknown token
}
