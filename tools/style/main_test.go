package main

import (
	"strings"
	"testing"
)

func TestTheLinesOfAListInACommentAreMeasured(t *testing.T) {
	source := strings.Join([]string{
		"// Package p decides:",
		"//",
		"//   - one thing, which",
		"//     goes on",
		"//  1. another",
		"//     one",
		"//",
		"//\tp := code()",
		"//     a drawing",
		"package p",
	}, "\n")
	var texts []string
	for _, p := range passages("p.go", commentLines(source, "//")) {
		texts = append(texts, p.text)
	}
	want := []string{" Package p decides:", "one thing, which goes on", "another one"}
	if got := strings.Join(texts, "|"); got != strings.Join(want, "|") {
		t.Errorf("the passages are %q, want %q", texts, want)
	}
}
