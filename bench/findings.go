package main

import (
	"fmt"
	"strings"
)

// bound is the limit that a goal sets.
type bound struct {
	Least *float64 `json:"at_least,omitempty"`
	Most  *float64 `json:"at_most,omitempty"`
}

func atLeast(v float64) bound { return bound{Least: &v} }
func atMost(v float64) bound  { return bound{Most: &v} }

func (b bound) holds(v float64) bool {
	return (b.Least == nil || v >= *b.Least) && (b.Most == nil || v <= *b.Most)
}

func (b bound) text(unit string) string {
	switch {
	case b.Least != nil:
		return "≥ " + figure(*b.Least, unit)
	case b.Most != nil:
		return "≤ " + figure(*b.Most, unit)
	}
	return "–"
}

// finding is a figure and its goal.
type finding struct {
	Goal  string  `json:"goal"`
	What  string  `json:"what"`
	Unit  string  `json:"unit,omitempty"` // empty: a ratio
	Bound bound   `json:"bound"`
	Value float64 `json:"value"`
	// Rounds are the figures of the rounds. Value is their median.
	Rounds []float64 `json:"rounds,omitempty"`
	// Missing is the reason that there is no figure, or "".
	Missing string `json:"missing,omitempty"`
	// Note is additional information for the reader.
	Note string `json:"note,omitempty"`
}

// summarize sets the value to the median of the rounds.
func (f finding) summarize() finding {
	f.Value = median(f.Rounds)
	return f
}

func (f finding) verdict() string {
	switch {
	case f.Missing != "":
		return "–"
	case f.Bound == (bound{}):
		return "" // shown for the reader, no goal
	case f.Bound.holds(f.Value):
		return "reached"
	}
	return "MISSED"
}

func (f finding) value() string {
	if f.Missing != "" {
		return "–"
	}
	return figure(f.Value, f.Unit)
}

// spread formats the minimum and the maximum of the rounds.
func (f finding) spread() string {
	if len(f.Rounds) < 2 {
		return ""
	}
	least, most := f.Rounds[0], f.Rounds[0]
	for _, v := range f.Rounds {
		least, most = min(least, v), max(most, v)
	}
	return figure(least, f.Unit) + " … " + figure(most, f.Unit)
}

// figure formats a value with its significant digits.
func figure(v float64, unit string) string {
	var s string
	switch {
	case v == float64(int64(v)) && (v >= 10 || unit != ""):
		s = fmt.Sprintf("%.0f", v)
	case v >= 100:
		s = fmt.Sprintf("%.0f", v)
	case v >= 10:
		s = fmt.Sprintf("%.1f", v)
	case v != 0 && v < 0.1:
		s = fmt.Sprintf("%.2g", v)
	default:
		s = fmt.Sprintf("%.2f", v)
	}
	return strings.TrimSpace(s + " " + unit)
}
