"""What `make test` leaves to `make test-sweeps`: the further cases of a test that has many, by how many of them stay.

The first cases of each test stay, and 0 leaves the whole test out. What is listed here takes the most time; CI runs both.
"""

KEPT = {
    "test_blocks.py": {
        "test_mobilenet_v2_of_inverted_residual_blocks_is_keras_mobilenet_v2": 1,
        "test_resnet50_of_bottleneck_blocks_is_keras_resnet50": 0,
    },
    "test_cases.py": {"test_case": 60},
    "test_cli_tasks.py": {
        "test_a_calibrated_run_keeps_its_thresholds_for_prediction_and_export": 1,
        "test_a_run_is_written_whole_and_says_how_good_it_is": 1,
    },
    "test_cli_train.py": {
        "test_a_page_that_can_t_be_made_is_told_and_the_rest_is_there": 1,
        "test_a_signal_in_the_middle_of_training_saves_the_best": 1,
        "test_an_audit_before_training_is_told_in_every_report": 0,
        "test_ctrl_c_while_the_page_is_made_saves_the_model": 0,
        "test_nan_in_the_loss_is_told_and_the_rest_is_written": 0,
        "test_nothing_that_fails_after_training_loses_the_model": 1,
    },
    "test_costs.py": {"test_published_figures": 2},
    "test_costs_memory.py": {"test_training_activation_bytes_are_what_tensorflow_keeps": 1},
    "test_docs_code.py": {"test_code_runs": 6},
    "test_evaluation_run_page.py": {"test_a_page_that_fails_is_a_warning_and_loses_nothing": 1},
    "test_every_backbone.py": {
        "test_a_backbone_takes_its_smallest_size_and_knows_its_row": 1,
        "test_a_larger_efficientnet_v2_prepares_pixels_in_another_way": 1,
        "test_freeze_keeps_the_backbone_bit_identical_and_unfreeze_moves_the_last_block_alone": 1,
        "test_tail_of_trunk_is_the_model": 3,
    },
    "test_export.py": {
        "test_an_exported_model_averages_views_itself": 2,
        "test_an_int8_export_averages_views_too": 0,
        "test_core_ml_is_written_with_a_warning_where_it_cannot_run": 0,
        "test_every_format_passes_the_gate_and_says_on_the_card_how": 2,
    },
    "test_export_backbones.py": {"test_features_of_random_and_real_images_agree_within_a_thousandth": 0},
    "test_export_conversion.py": {
        "test_a_network_too_large_for_constants_computes_the_same": 1,
        "test_quantized_models_are_smaller_and_compute_nearly_the_same": 1,
    },
    "test_export_usage.py": {"test_the_code_makes_probabilities_of_every_kind_of_output": 1},
    "test_features_device.py": {
        "test_training_from_the_device_is_training_from_memory": 2,
        "test_what_16_bits_do_not_hold_is_computed_again_in_32": 3,
    },
    "test_features_extraction.py": {"test_stored_features_are_never_stale": 2},
    "test_features_fit.py": {"test_a_cached_run_equals_an_uncached_one": 2},
    "test_fit_table.py": {
        "test_it_runs_on_what_the_table_says": 10,
        "test_the_numbers_are_those_of_fit": 10,
    },
    "test_freezing.py": {
        "test_freezing_un_compiles_so_that_fit_raises": 1,
        "test_training_moves_nothing_before_the_boundary_and_no_moving_statistic": 1,
    },
    "test_graph.py": {"test_dominators_and_blocks_of_a_family": 3},
    "test_lab_auxiliary_heads.py": {
        "test_the_main_output_stays_the_same_bit_for_bit_and_so_do_the_parts_around_it": 1,
        "test_training_it_trains_the_original_and_removing_keeps_the_trained_weights": 1,
    },
    "test_lab_choice.py": {
        "test_numbers_are_scored_by_r2_and_trained_by_the_recipe": 0,
        "test_the_command_measures_on_a_folder_and_leaves_out_what_has_no_weights": 0,
    },
    "test_lab_comparison.py": {"test_what_is_counted_is_timed_and_what_cannot_be_converted_says_why": 0},
    "test_lab_gradients.py": {
        "test_networks_built_to_have_each_fault_get_the_right_verdict": 1,
        "test_noise_learned_by_heart_is_nothing_on_new_data_and_a_rule_is_something": 0,
    },
    "test_lab_pruning.py": {"test_zeros_are_kept_in_every_kind_of_training": 1},
    "test_networks.py": {
        "test_blocks_are_told_by_the_layers_names": 2,
        "test_constructors_take_what_keras_constructors_take": 2,
        "test_every_network_trains_saves_and_loads_as_plain_keras": 1,
        "test_parameters_and_macs_are_the_published_ones": 3,
    },
    "test_notebooks.py": {"test_what_makes_a_run_fail": 2},
    "test_training.py": {"test_labels_of_every_form_choose_their_loss": 2},
    "test_training_doctor.py": {"test_a_right_script_stays_quiet": 4},
    "test_training_labels.py": {
        "test_a_cached_run_equals_a_plain_one": 1,
        "test_from_a_labels_file_to_a_model_that_learned": 1,
    },
    "test_training_rate_search.py": {
        "test_a_rate_that_diverges_is_not_suggested": 1,
        "test_the_model_is_left_exactly_as_it_was": 2,
    },
    "test_training_session.py": {
        "test_a_dataset_that_comes_in_another_order_is_shuffled_in_every_epoch": 3,
        "test_an_augmentation_in_a_dataset_is_found_and_never_frozen": 1,
        "test_one_array_in_a_list_or_dictionary_is_that_array": 2,
    },
    "test_training_solving.py": {
        "test_all_others_are_trained_until_validation_stops_improving": 2,
        "test_other_heads_and_labels_are_fitted_too": 2,
        "test_views_are_made_where_nobody_says_how_many": 2,
    },
    "test_training_steps.py": {"test_many_steps_in_one_call_are_the_steps_one_by_one": 1},
}
